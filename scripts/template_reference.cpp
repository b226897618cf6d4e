// Renders a chat template as llama.cpp's `--jinja` does. Compiled and called by check_templates.py.
//
//     template_reference TEMPLATE BOS EOS < cases.json
//
// A case is {"messages": [...], "enable_thinking": bool, "switches": {name: value}}; the answer has one line of JSON
// for each: {"prompt", "supports_thinking", "open", "close": [...]}, or {"error"}.

#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>

#include "chat.h"
#include "json.h"
#include "log.h"

static std::string everything_of(std::istream & stream) {
    std::ostringstream text;
    text << stream.rdbuf();
    return text.str();
}

static common_json answer_to(const common_chat_templates * templates, const common_json & question) {
    common_chat_templates_inputs inputs;
    inputs.messages              = common_chat_msgs_parse_oaicompat(question.at("messages"));
    inputs.use_jinja             = true;
    inputs.add_generation_prompt = true;
    inputs.enable_thinking       = question.at("enable_thinking").get<bool>();
    inputs.reasoning_format      = COMMON_REASONING_FORMAT_DEEPSEEK;
    for (const auto & item : question.at("switches").items()) {
        inputs.chat_template_kwargs[item.key()] = item.value().dump();
    }
    const auto params = common_chat_templates_apply(templates, inputs);

    common_json answer = common_json::object();
    answer["prompt"]            = params.prompt;
    answer["supports_thinking"] = params.supports_thinking;
    answer["open"]              = params.thinking_start_tag;
    answer["close"]             = params.thinking_end_tags;
    return answer;
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        std::cerr << "usage: template_reference TEMPLATE BOS EOS < cases.json\n";
        return 2;
    }
    common_log_set_verbosity_thold(-1);
    std::ifstream file(argv[1]);
    const std::string source = everything_of(file);
    const common_json cases  = common_json::parse(everything_of(std::cin));

    common_chat_templates_ptr templates;
    std::string               failure;
    try {
        templates = common_chat_templates_init(nullptr, source, argv[2], argv[3]);
    } catch (const std::exception & error) {
        failure = error.what();
    }
    for (size_t i = 0; i < cases.size(); i++) {
        common_json answer = common_json::object();
        if (templates) {
            try {
                answer = answer_to(templates.get(), cases.at(i));
            } catch (const std::exception & error) {
                answer["error"] = std::string(error.what());
            }
        } else {
            answer["error"] = failure;
        }
        std::cout << answer.dump_safe() << "\n";
    }
    return 0;
}
