"use strict";
// Chat and meter. What the meter shows comes from the server as it is: nothing is computed here.
const find = (id) => document.getElementById(id);
const said = [];
let key = sessionStorage.getItem("key") || "";
let answering = null;
let asking = null; // for the key: once, however many requests want it

function headers() {
  const made = { "Content-Type": "application/json" };
  if (key) made.Authorization = `Bearer ${key}`;
  return made;
}

async function askKey() {
  const dialog = find("key");
  find("refused").hidden = !key;
  find("secret").value = "";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  key = find("secret").value;
  sessionStorage.setItem("key", key);
  asking = null;
}

async function asked(path, options) {
  while (true) {
    const used = key;
    const response = await fetch(path, { ...options, headers: headers() });
    if (response.status !== 401) return response;
    if (used === key) await (asking ??= askKey());
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function problem(error) {
  if (error.name === "AbortError") return;
  // A fetch that fails tells no more than that, and every browser in its own words.
  shown("error", error instanceof TypeError ? "The server does not answer." : error.message);
}

// Whoever has scrolled up to read is left there.
function follow(change) {
  const chat = find("chat");
  const atEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 40;
  change();
  if (atEnd) chat.scrollTop = chat.scrollHeight;
}

function shown(role, text) {
  const article = document.createElement("article");
  article.className = role;
  article.append(text);
  find("chat").append(article);
  article.scrollIntoView({ block: "end" });
  return article;
}

function part(article, name, title) {
  let found = article.querySelector(name);
  if (!found) {
    found = document.createElement(name);
    if (title) {
      const summary = document.createElement("summary");
      summary.append(title);
      found.append(summary);
    }
    found.append(document.createTextNode(""));
    article.append(found);
  }
  return found.lastChild;
}

function draw(article, chunk) {
  for (const { delta, finish_reason } of chunk.choices) {
    if (delta.reasoning_content) part(article, "details", "Thinking").data += delta.reasoning_content;
    if (delta.content) part(article, "div").data += delta.content;
    if (finish_reason) {
      const rate = chunk.timings && chunk.timings.predicted_per_second;
      const told = [rate ? `${rate.toPrecision(3)} t/s` : "", finish_reason === "length" ? "cut at its limit" : ""];
      part(article, "footer").data = told.filter(Boolean).join(", ");
    }
  }
}

async function send(text) {
  said.push({ role: "user", content: text });
  shown("user", text);
  const article = shown("assistant", "");
  answering = new AbortController();
  find("send").textContent = "Stop";
  let answer = "";
  try {
    const body = JSON.stringify({ model: find("model").value, messages: said, stream: true });
    const response = await asked("v1/chat/completions", { method: "POST", body, signal: answering.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      for (const choice of chunk.choices) answer += choice.delta.content || "";
      follow(() => draw(article, chunk));
    }
  } catch (error) {
    problem(error);
  } finally {
    if (answer) said.push({ role: "assistant", content: answer });
    else said.pop();
    answering = null;
    find("send").textContent = "Send";
  }
}

async function watch() {
  while (true) {
    try {
      const response = await asked("events", {});
      for await (const moment of events(response)) {
        const of = moment.models.find((model) => model.model === find("model").value);
        find("meter").hidden = !of;
        for (const id of ["tps", "active", "waiting", "reads", "ram", "vram"]) find(id).textContent = of ? of.shown[id] : "–";
      }
    } catch (error) {
      find("meter").hidden = true;
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) {
    answering.abort();
    return;
  }
  const text = find("text").value.trim();
  if (!text) return;
  find("text").value = "";
  send(text);
});
find("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    find("ask").requestSubmit();
  }
});
find("clear").addEventListener("click", () => {
  if (answering) answering.abort();
  said.length = 0;
  find("chat").replaceChildren();
});

(async () => {
  const models = (await (await asked("v1/models", {})).json()).data;
  for (const model of models) find("model").add(new Option(model.id, model.id));
  watch();
})().catch(problem);
