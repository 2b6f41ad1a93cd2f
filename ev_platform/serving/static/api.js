// Talks to the server: the key of this tab, JSON requests, streamed answers, and refusals in words.
// What does not belong here: anything of the page's elements (turn.js, app.js).

const KEY = "ev-platform-key"; // sessionStorage is this tab's alone and goes with it

export const storedKey = () => sessionStorage.getItem(KEY);
export const keepKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** A refusal or failure; `message` is the sentence to show. */
export class Problem extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Return the models that may be asked. */
export async function listModels(key) {
  const response = await send("v1/models", { key });
  return (await response.json()).data;
}

/** Post a body and return the reply with the id under which the server logged the request. */
export async function post(path, body, signal) {
  const response = await send(path, { key: storedKey(), body, signal });
  return { reply: await response.json(), requestId: response.headers.get("x-request-id") };
}

/**
 * Post a question and yield `{event, data, requestId}` as the answer is written.
 * It ends with the event `done`; whatever else ends it is thrown as a `Problem`.
 */
export async function* stream(path, body, signal) {
  const response = await send(path, { key: storedKey(), body: { ...body, stream: true }, signal });
  const requestId = response.headers.get("x-request-id");
  let isWhole = false;
  try {
    // Read to its end: leaving after the last event would look to the server like a reader who went away.
    for await (const { event, data } of events(response.body)) {
      if (event === "error") {
        const { message, code } = data.error;
        throw new Problem(message, { status: 500, code });
      }
      isWhole ||= event === "done";
      yield { event, data, requestId };
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
  }
  if (!isWhole) throw new Problem("The connection broke before the answer was complete. Ask again.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n");
        const field = (name) =>
          lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trim());
        const data = field("data").join("\n");
        if (data) yield { event: field("event")[0] ?? "message", data: JSON.parse(data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // tells the server that nobody reads on
  }
}

async function send(path, { key, body, signal }) {
  if (!/^[\x21-\x7e]+$/.test(key ?? "")) {
    throw new Problem("A key has no spaces and no letters beyond the plain ones: copy it again.", { status: 401 });
  }
  const request = { headers: { Authorization: `Bearer ${key}` }, signal, cache: "no-store", redirect: "error" };
  if (body !== undefined) {
    request.method = "POST";
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached. Check your connection, then try again.");
  }
  if (response.ok) return response;
  throw await refusal(response);
}

async function refusal(response) {
  const { status } = response;
  // A proxy in front may answer with a page of its own.
  const { message, code } = (await response.json().catch(() => ({}))).error ?? {};
  const wait = duration(Number(response.headers.get("retry-after")));
  const again = wait ? `Try again in ${wait}.` : "Try again in a moment.";
  const said = message ?? `The server answered with status ${status}.`;
  const sentences = {
    401: "The server does not accept this key: it is mistyped, expired or revoked. Enter another.",
    403: `This key may not do that. ${said}`,
    413: "The text is too long: shorten it.",
    429:
      {
        quota_exceeded: `This key has used up its tokens for today. ${again}`,
        concurrency_limit: `This key has too many questions under way. ${again}`,
      }[code] ?? `Too many requests in a short time. ${again}`,
    502: `The server is not ready. ${again}`,
    503: `The server is busy or not ready. ${again}`,
    504: `The answer took too long. ${again}`,
  };
  return new Problem(sentences[status] ?? said, { status, code });
}

function duration(seconds) {
  if (!(seconds > 0)) return null;
  const [amount, unit] =
    seconds < 90 ? [seconds, "second"] : seconds < 5400 ? [seconds / 60, "minute"] : [seconds / 3600, "hour"];
  const whole = Math.ceil(amount);
  return `${whole} ${unit}${whole === 1 ? "" : "s"}`;
}
