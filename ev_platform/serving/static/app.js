// The page: entering the key, choosing a model, asking it.
// What does not belong here: requests (api.js), and how an answer looks (turn.js).

import * as api from "./api.js";
import { Turn } from "./turn.js";

const part = (id) => document.getElementById(id);
const KINDS = {
  answer: {
    label: "Your question",
    send: "Ask",
    title: "Ask a question",
    text:
      "A model writes the answer from passages of its sources. They are shown with it, so that you can check it; " +
      "where they do not hold the answer, it should say so.",
    alone: "Each question stands alone: the model remembers no earlier one.",
  },
  recall: {
    label: "Your question",
    send: "Ask",
    title: "Ask a question",
    text: "This model answers from what it learned in training and shows no sources: check what matters.",
    alone: "Each question stands alone: the model remembers no earlier one.",
  },
  classify: {
    label: "Text to label",
    send: "Label",
    title: "Label a text",
    text: "The model gives a text one of these labels.",
    alone: "Each text stands alone: the model remembers no earlier one.",
  },
  extract: {
    label: "Your question about the passage",
    send: "Find",
    title: "Find the answer in a passage",
    text: "Paste a passage and ask about it: the model marks the words that answer.",
    alone: "Each question stands alone: the model remembers no earlier one.",
  },
};
let models = [];
let underWay = null; // AbortController of the answer being written
let owner = null; // id of the key whose conversation is on the page

const chosen = () => models.find((model) => model.id === part("model").value);
const kindOf = ({ task_type }) =>
  ({ classification: "classify", extractive_qa: "extract", closed_book_qa: "recall" })[task_type] ?? "answer";
const PARTS_WITH_KEY = ["picker", "forget", "desk", "composer"];
// A phone's keyboard covers the answer: it comes when the visitor asks for it.
const hasKeyboard = () => !matchMedia("(pointer: coarse)").matches;

function say(words) {
  part("status").textContent = words;
}

function askForKey(sentence = "") {
  underWay?.abort();
  api.forgetKey();
  for (const id of PARTS_WITH_KEY) part(id).hidden = true;
  part("entry").hidden = false;
  part("key").value = "";
  part("key-error").textContent = sentence;
  part("key").focus();
}

/** Remove what one visitor asked, was told and began to write. */
function clear() {
  part("turns").replaceChildren();
  part("welcome").hidden = false;
  part("question").value = part("context").value = "";
  say("");
}

async function enter(key) {
  try {
    models = await api.listModels(key);
  } catch (problem) {
    if (problem.status === 401) return askForKey(problem.message);
    part("entry").hidden = false;
    part("key-error").textContent = problem.message;
    return;
  }
  if (!models.length) {
    part("entry").hidden = false;
    part("key-error").textContent = "No model answers yet. Try again in a moment.";
    return;
  }
  const [, id] = key.split("_"); // ev_<id>_<secret>
  if (owner !== null && owner !== id) clear();
  owner = id;
  api.keepKey(key);
  part("key").value = "";
  part("entry").hidden = true;
  for (const id of PARTS_WITH_KEY) part(id).hidden = false;
  listModels();
  if (hasKeyboard()) part("question").focus();
}

function listModels() {
  const before = part("model").value;
  part("model").replaceChildren(
    ...models.map(({ id, version }) => new Option(version && version !== id ? `${id} (${version})` : id, id)),
  );
  if (models.some((model) => model.id === before)) part("model").value = before;
  showModel();
}

function showModel() {
  const model = chosen();
  const kind = KINDS[kindOf(model)];
  part("question-label").textContent = kind.label;
  part("send").textContent = kind.send;
  part("welcome-title").textContent = kind.title;
  part("welcome-text").textContent = kind.text;
  part("alone").textContent = kind.alone;
  part("context-field").hidden = kind !== KINDS.extract;
  part("context").required = kind === KINDS.extract;
  const labels = kind === KINDS.classify ? (model.labels ?? []) : [];
  part("labels").hidden = !labels.length;
  part("labels").replaceChildren(
    ...labels.map((label) => Object.assign(document.createElement("li"), { textContent: label })),
  );
}

async function ask(question, context, model) {
  const controller = new AbortController();
  const kind = kindOf(model);
  let requestId = null;
  const turn = new Turn(question, kind === "extract" ? context : null, {
    onAgain: () => !underWay && ask(question, context, chosen().id === model.id ? chosen() : model),
    onRating: (rating) => api.post("v1/feedback", { request_id: requestId, question, ...rating }),
  });
  begin(controller, turn);
  try {
    let said;
    if (kind === "answer" || kind === "recall") {
      for await (const event of api.stream("v1/answers", { question, model: model.id }, controller.signal)) {
        requestId = event.requestId;
        said = showEvent(turn, event) ?? said;
      }
    } else {
      turn.progress("Reading");
      const body = kind === "classify" ? { text: question } : { question, context };
      const { reply, requestId: id } = await api.post(`v1/${kind}`, { ...body, model: model.id }, controller.signal);
      requestId = id;
      said = kind === "classify" ? turn.labelled(reply) : turn.extracted(reply);
    }
    say(said);
    reveal(turn.element);
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof api.Problem)) throw error;
    if (error.name === "AbortError") turn.stopped();
    else turn.failed(error.message);
    say(error.name === "AbortError" ? "Stopped." : error.message);
    reveal(turn.element);
    if (error.status === 401) askForKey(error.message);
  } finally {
    end(controller);
  }
}

/** Show one event of a streamed answer; the last one gives the words to announce. */
function showEvent(turn, { event, data }) {
  let said;
  if (event === "citations") {
    turn.citations(data.citations);
    turn.progress("Writing");
  } else if (event === "delta") {
    turn.write(data.text);
  } else if (event === "done") {
    said = turn.answered(data);
    if (models.every((model) => model.version !== data.model)) refreshModels(); // promoted or rolled back
  }
  if (event !== "delta") reveal(turn.element);
  return said;
}

/** Scroll a turn into sight, from its question on, unless the visitor is reading something else. */
function reveal(element) {
  const composer = part("composer").offsetHeight;
  document.documentElement.style.scrollPaddingBottom = `${composer + 16}px`;
  const { top, bottom, height } = element.getBoundingClientRect();
  if (bottom < 0 || top > innerHeight) return;
  element.scrollIntoView({ block: height > innerHeight - composer - 32 ? "start" : "nearest" });
}

async function refreshModels() {
  const now = await api.listModels(api.storedKey()).catch(() => []);
  if (!now.length) return;
  models = now;
  listModels();
}

function begin(controller, turn) {
  underWay = controller;
  part("welcome").hidden = true;
  part("turns").append(turn.element);
  turn.element.scrollIntoView({ block: "end" });
  reveal(turn.element);
  part("send").hidden = true;
  part("stop").hidden = false;
  turn.progress("Looking for passages");
  say("Asked. Waiting for the answer.");
}

function end(controller) {
  if (underWay !== controller) return;
  underWay = null;
  const hadFocus = document.activeElement === part("stop") || document.activeElement === document.body;
  part("stop").hidden = true;
  part("send").hidden = false;
  if (hadFocus && hasKeyboard()) part("question").focus();
}

part("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  part("key-error").textContent = "";
  enter(part("key").value.trim());
});

part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const [question, context] = [part("question").value.trim(), part("context").value];
  if (underWay || !question) return;
  part("question").value = "";
  if (!hasKeyboard()) part("question").blur();
  ask(question, context, chosen());
});

part("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  part("ask").requestSubmit();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") underWay?.abort();
});
part("stop").addEventListener("click", () => underWay?.abort());
part("model").addEventListener("change", showModel);
part("forget").addEventListener("click", () => {
  clear();
  askForKey();
});

if (api.storedKey()) {
  enter(api.storedKey());
} else {
  askForKey();
}
