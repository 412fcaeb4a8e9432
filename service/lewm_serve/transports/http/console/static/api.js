// Requests to the server. The key is in a cookie that scripts cannot read.

const BASE = "console/api/";

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? `the server answered ${status}`);
    this.status = status;
    this.code = problem?.code ?? "";
    this.fields = problem?.errors ?? [];
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, credentials: "same-origin" });
  } catch {
    throw new ApiError(0, { detail: "the server does not answer" });
  }
  const text = await response.text();
  let document = null;
  try {
    document = text ? JSON.parse(text) : null;
  } catch {
    // A proxy between may answer with something else.
  }
  if (response.ok) return document;
  const error = new ApiError(response.status, document);
  const needsKey = error.code === "unauthenticated" && path.startsWith(BASE);
  if (needsKey || (error.status === 403 && path === `${BASE}server`)) {
    window.dispatchEvent(new CustomEvent("console:key", { detail: error }));
  }
  throw error;
}

export const get = (path) => request(BASE + path);

function send(method, path, body) {
  return request(path, {
    method,
    headers: { "Content-Type": "application/json", "Lewm-Console": "1" },
    body: JSON.stringify(body ?? {}),
  });
}

export const post = (path, body) => send("POST", BASE + path, body);
export const startSession = (key) => send("POST", "console/session", { key });
export const endSession = () => send("DELETE", "console/session");
