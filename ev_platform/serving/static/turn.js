// One question with its answer, sources and rating, as elements.
// Whatever a model or a page wrote becomes a text node: nothing here reads markup.
// What does not belong here: requests (api.js), and which model is asked (app.js).

const template = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** Shows one question and what comes back. */
export class Turn {
  /** `onAgain` is called when the question is to be asked again, `onRating` with `{rating, correction, comment}`. */
  constructor(question, context, { onAgain, onRating }) {
    this.element = template("turn-template");
    this.context = context;
    this.onRating = onRating;
    this.#part(".question").textContent = question;
    if (context) this.#show(".given").textContent = context;
    this.#part(".again").addEventListener("click", onAgain);
    this.#connectRating();
    this.progress("Sending");
  }

  progress(words) {
    this.#part(".progress").hidden = !words;
    this.#part(".progress-text").textContent = words ?? "";
    this.element.setAttribute("aria-busy", String(Boolean(words)));
  }

  write(text) {
    this.#part(".answer").append(text);
  }

  citations(citations, isAbstention = false) {
    if (!citations.length) return;
    const box = this.#show(".sources");
    box.querySelector("summary").textContent = isAbstention
      ? `Passages that were looked at (${citations.length})`
      : `Sources (${citations.length}): what the model was given`;
    box.open = !isAbstention;
    box.querySelector("ol").replaceChildren(...citations.map(sourceItem));
  }

  /** Show a whole answer of `/v1/answers`. */
  answered(reply) {
    this.#part(".answer").replaceChildren(...withMarks(reply.answer, reply.citations));
    if (reply.abstained) this.#abstained("No answer in these sources");
    this.citations(reply.citations, reply.abstained);
    this.#end(reply);
    return reply.abstained ? `No answer: ${reply.answer}` : `Answer: ${reply.answer}`;
  }

  /** Show a label of `/v1/classify`. */
  labelled(reply) {
    this.#part(".answer").classList.add("label");
    this.#part(".answer").textContent = reply.label ?? reply.text;
    if (reply.label === null) this.#abstained("None of the labels; the model wrote");
    this.#end(reply);
    return reply.label === null ? "None of the labels" : `Label: ${reply.label}`;
  }

  /** Show a span of `/v1/extract`, marked in its passage. */
  extracted(reply) {
    this.#part(".answer").textContent = reply.answer;
    if (reply.abstained) this.#abstained("No answer in this passage");
    if (reply.start !== null && reply.end !== null) {
      const characters = Array.from(this.context); // the server counts characters, JavaScript halves of some
      const mark = document.createElement("mark");
      mark.textContent = characters.slice(reply.start, reply.end).join("");
      const [before, after] = [characters.slice(0, reply.start), characters.slice(reply.end)];
      this.#part(".given").replaceChildren(before.join(""), mark, after.join(""));
    } else if (!reply.abstained) {
      this.#abstained("Not word for word in the passage");
    }
    this.#end(reply);
    return reply.abstained ? `No answer: ${reply.answer}` : `Answer: ${reply.answer}`;
  }

  failed(sentence) {
    this.progress(null);
    this.#show(".problem").textContent = sentence;
    this.#show(".again");
  }

  stopped() {
    this.progress(null);
    this.#show(".tag").textContent = "Stopped";
    this.#show(".again");
  }

  #abstained(words) {
    this.element.classList.add("abstained");
    this.#show(".tag").textContent = words;
  }

  #end({ model, timings, usage }) {
    this.progress(null);
    const { total_ms, queue_ms, retrieve_ms, first_token_ms } = timings;
    const facts = [`${seconds(total_ms)}`];
    if (first_token_ms !== null && first_token_ms !== undefined) {
      facts.push(`first word after ${seconds((queue_ms ?? 0) + (retrieve_ms ?? 0) + first_token_ms)}`);
    }
    if (usage.completion_tokens) facts.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
    facts.push(model);
    this.#part(".facts").replaceChildren(
      ...facts.map((fact) => Object.assign(document.createElement("span"), { textContent: fact })),
    );
    this.#part(".end").hidden = false;
  }

  #connectRating() {
    const [up, down, correct] = [".up", ".down", ".correct"].map((name) => this.#part(name));
    const form = this.#part(".correction");
    const open = (isOpen) => {
      form.hidden = !isOpen;
      correct.setAttribute("aria-expanded", String(isOpen));
      (isOpen ? this.#part(".correction-text") : correct).focus();
      if (isOpen) form.scrollIntoView({ block: "nearest" });
    };
    up.addEventListener("click", () => this.#rate({ rating: "up" }));
    down.addEventListener("click", () => this.#rate({ rating: "down" }));
    correct.addEventListener("click", () => open(form.hidden));
    this.#part(".cancel").addEventListener("click", () => open(false));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const correction = this.#part(".correction-text").value.trim();
      const comment = this.#part(".comment-text").value.trim();
      if (!correction && !comment) return open(false);
      if (await this.#rate({ rating: "down", ...(correction && { correction }), ...(comment && { comment }) })) {
        open(false);
      }
    });
  }

  async #rate(rating) {
    const said = this.#part(".thanks");
    const buttons = this.#parts(".rating button, .correction button");
    said.textContent = "";
    for (const button of buttons) button.disabled = true;
    try {
      await this.onRating(rating);
      for (const name of ["up", "down"]) {
        this.#part(`.${name}`).setAttribute("aria-pressed", String(rating.rating === name));
      }
      said.classList.remove("problem");
      said.textContent = rating.correction ? "Thank you. Somebody will review your correction." : "Thank you.";
      return true;
    } catch (error) {
      said.classList.add("problem");
      said.textContent = `Not sent. ${error.message}`;
      return false;
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }

  #parts(selector) {
    return this.element.querySelectorAll(selector);
  }

  #show(selector) {
    const part = this.#part(selector);
    part.hidden = false;
    return part;
  }
}

function sourceItem(citation) {
  const item = template("source-template");
  const where = citation.heading || citation.title || citation.url;
  item.querySelector(".number").textContent = citation.number;
  item.querySelector(".where").append(sourceLink(citation, where));
  if (citation.page !== null) item.querySelector(".where").append(`, page ${citation.page}`);
  const fetched = new Date(citation.fetched_at);
  const day = fetched.toLocaleDateString(undefined, { dateStyle: "medium" });
  const facts = [citation.publisher, citation.licence, `fetched ${day}`, `similarity ${citation.score.toFixed(2)}`];
  item.querySelector(".origin").append(facts.join(" · "));
  item.querySelector(".origin").title = fetched.toISOString();
  item.querySelector(".passage blockquote").textContent = citation.text;
  return item;
}

/** Return a link to where a citation comes from, or plain text where its address is none of the web. */
function sourceLink({ url, page, number }, text) {
  const address = URL.canParse(url) ? new URL(url) : null;
  if (!address || !["http:", "https:"].includes(address.protocol)) return document.createTextNode(text);
  if (page !== null && !address.hash) address.hash = `page=${page}`;
  const link = document.createElement("a");
  link.textContent = text;
  link.href = address.href;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  link.title = address.href;
  link.setAttribute("aria-label", `${text}, source ${number} (opens a new tab)`);
  return link;
}

/** Return an answer's nodes, with the [1] that a model may write as links to its sources. */
function withMarks(text, citations) {
  const byNumber = new Map(citations.map((citation) => [String(citation.number), citation]));
  return text.split(/(\[\d{1,3}\])/).map((piece) => {
    const citation = /^\[\d+\]$/.test(piece) && byNumber.get(piece.slice(1, -1));
    return citation ? sourceLink(citation, piece) : document.createTextNode(piece);
  });
}

function seconds(ms) {
  return `${(ms / 1000).toFixed(ms < 1000 ? 2 : 1)} s`;
}
