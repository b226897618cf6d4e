// Reads answers that call tools as llama.cpp's server does. Compiled and called by check_tools.py.
//
//     tool_reference < cases
//
// A case is a line {"template", "messages", "tools", "several": bool, "texts": [...]}: a template's source, and answers
// as the model writes them behind the prompt. Its answer is a line, too: a list with {"content", "reasoning", "calls":
// [{"name", "arguments"}]} or {"error"} for each text; or {"error"} where the template can't be had. BOS and EOS are "", as
// llama.cpp's own tests have them: it would want EOS in the texts of some templates.

#include <iostream>
#include <string>

#include "chat.h"
#include "json.h"
#include "log.h"

static common_json read(const std::string & text, const common_chat_parser_params & parser) {
    common_json answer = common_json::object();
    try {
        const auto message  = common_chat_parse(text, false, parser);
        answer["content"]   = message.content;
        answer["reasoning"] = message.reasoning_content;
        answer["calls"]     = common_json::array();
        for (const auto & call : message.tool_calls) {
            common_json made  = common_json::object();
            made["name"]      = call.name;
            made["arguments"] = call.arguments;
            answer["calls"].push_back(made);
        }
    } catch (const std::exception & error) {
        answer["error"] = std::string(error.what());
    }
    return answer;
}

static common_json answer_to(const common_json & question) {
    const auto templates = common_chat_templates_init(nullptr, question.at("template").get<std::string>());
    common_chat_templates_inputs inputs;
    inputs.messages            = common_chat_msgs_parse_oaicompat(question.at("messages"));
    inputs.tools               = common_chat_tools_parse_oaicompat(question.at("tools"));
    inputs.parallel_tool_calls = question.at("several").get<bool>();
    inputs.enable_thinking     = false;
    inputs.reasoning_format    = COMMON_REASONING_FORMAT_DEEPSEEK;
    const auto params          = common_chat_templates_apply(templates.get(), inputs);

    common_chat_parser_params parser(params);
    parser.reasoning_format = inputs.reasoning_format;
    parser.parser.load(params.parser);

    common_json answers = common_json::array();
    for (size_t i = 0; i < question.at("texts").size(); i++) {
        answers.push_back(read(question.at("texts").at(i).get<std::string>(), parser));
    }
    return answers;
}

int main() {
    common_log_set_verbosity_thold(-1);
    for (std::string line; std::getline(std::cin, line);) {
        common_json answer = common_json::object();
        try {
            answer = answer_to(common_json::parse(line));
        } catch (const std::exception & error) {
            answer["error"] = std::string(error.what());
        }
        std::cout << answer.dump_safe() << std::endl;
    }
    return 0;
}
