// What clients from npm do with a server; scripts/check_clients.py starts it: node check_clients.mjs ADDRESS
// Prints a line of JSON for each thing that a client does: {client, what, problem}, with problem null where it is right.
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const address = process.argv[2];
const said = "Hello! I am tiny, the demo model of llmrun.";
const model = "tiny";
const messages = [{ role: "user", content: "Hi" }];
const Days = z.object({ days: z.number().int().min(1).max(7), unit: z.enum(["C", "F"]) }).strict();
const parameters = z.toJSONSchema(Days);
const openai = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: address, apiKey: "none", maxRetries: 0 });
const vercel = createOpenAICompatible({
  name: "llmrun",
  baseURL: `${address}/v1`,
  includeUsage: true,
  supportsStructuredOutputs: true,
})(model);

const functions = [{ type: "function", function: { name: "get_weather", parameters } }];
const clients = {
  openai: {
    async chat() {
      const made = await openai.chat.completions.create({ model, messages, max_tokens: 12 });
      assert.equal(made.choices[0].message.content, said);
      assert.equal(made.usage.completion_tokens, 12);
    },
    async "stream, usage"() {
      const options = { model, messages, max_tokens: 12, stream_options: { include_usage: true } };
      const made = await openai.chat.completions.stream(options).finalChatCompletion();
      assert.equal(made.choices[0].message.content, said);
      assert.equal(made.usage.completion_tokens, 12);
    },
    async "forced tool"() {
      const options = { model, messages, tools: functions, tool_choice: "required" };
      const whole = await openai.chat.completions.create(options);
      const streamed = await openai.chat.completions.stream(options).finalChatCompletion();
      for (const made of [whole, streamed]) {
        assert.equal(made.choices[0].finish_reason, "tool_calls");
        for (const call of made.choices[0].message.tool_calls) Days.parse(JSON.parse(call.function.arguments));
      }
    },
    async schema() {
      const made = await openai.chat.completions.parse({ model, messages, response_format: zodResponseFormat(Days, "d") });
      Days.parse(made.choices[0].message.parsed);
    },
    async responses() {
      const made = await openai.responses.create({ model, input: "Hi", max_output_tokens: 12 });
      assert.equal(made.output_text, said);
      const streamed = await openai.responses.stream({ model, input: "Hi", max_output_tokens: 12 }).finalResponse();
      assert.equal(streamed.output_text, said);
      const parsed = await openai.responses.parse({ model, input: "Hi", text: { format: zodTextFormat(Days, "d") } });
      Days.parse(parsed.output_parsed);
      const tools = [{ type: "function", name: "get_weather", parameters, strict: true }];
      const called = await openai.responses.create({ model, input: "Hi", tools, tool_choice: "required" });
      Days.parse(JSON.parse(called.output[0].arguments));
    },
  },
  "@anthropic-ai/sdk": {
    async chat() {
      const made = await anthropic.messages.create({ model, messages, max_tokens: 12 });
      assert.equal(made.content[0].text, said);
    },
    async "stream, usage"() {
      const made = await anthropic.messages.stream({ model, messages, max_tokens: 12 }).finalMessage();
      assert.equal(made.content[0].text, said);
      assert.equal(made.usage.output_tokens, 12);
    },
    async "forced tool"() {
      const tools = [{ name: "get_weather", input_schema: parameters }];
      const options = { model, messages, max_tokens: 400, tools, tool_choice: { type: "any" } };
      const whole = await anthropic.messages.create(options);
      const streamed = await anthropic.messages.stream(options).finalMessage();
      for (const made of [whole, streamed]) {
        assert.equal(made.stop_reason, "tool_use");
        for (const block of made.content) Days.parse(block.input);
      }
    },
    async schema() {
      const Unit = Days.pick({ unit: true }); // it sends no bounds of numbers, but checks them
      const output_config = { format: zodOutputFormat(Unit) };
      const made = await anthropic.messages.parse({ model, messages, max_tokens: 400, output_config });
      Unit.parse(made.parsed_output);
    },
  },
  "ai, @ai-sdk/openai-compatible": {
    async chat() {
      const made = await generateText({ model: vercel, prompt: "Hi", maxOutputTokens: 12, maxRetries: 0 });
      assert.equal(made.text, said);
      assert.equal(made.usage.outputTokens, 12);
    },
    async "stream, usage"() {
      const made = streamText({ model: vercel, prompt: "Hi", maxOutputTokens: 12, maxRetries: 0 });
      const texts = [];
      for await (const text of made.textStream) texts.push(text);
      assert.equal(texts.join(""), said);
      assert.equal((await made.usage).outputTokens, 12);
    },
    async "forced tool"() {
      const tools = { get_weather: tool({ inputSchema: Days }) };
      const options = { model: vercel, prompt: "Hi", tools, toolChoice: "required", maxRetries: 0 };
      const whole = await generateText(options);
      assert.equal(whole.finishReason, "tool-calls");
      const streamed = await streamText(options).toolCalls;
      for (const call of [...whole.toolCalls, ...streamed]) {
        assert.ok(!call.invalid, call.error);
        Days.parse(call.input);
      }
      assert.ok(whole.toolCalls.length && streamed.length);
    },
    async schema() {
      const output = Output.object({ schema: Days });
      const made = await generateText({ model: vercel, prompt: "Hi", output, maxRetries: 0 });
      Days.parse(made.output);
    },
  },
};

for (const [client, does] of Object.entries(clients)) {
  for (const [what, run] of Object.entries(does)) {
    let problem = null;
    try {
      await run();
    } catch (error) {
      problem = `${error.name}: ${error.message}`.slice(0, 300);
    }
    console.log(JSON.stringify({ client, what, problem }));
  }
}
