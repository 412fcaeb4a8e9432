// The frame of the page: its views, the key, and the keyboard.

import { endSession, get, startSession } from "./api.js";
import { h, isTyping } from "./dom.js";
import { drive } from "./drive.js";
import { fleet } from "./fleet.js";
import { live } from "./live.js";
import { replay } from "./replay.js";

const VIEWS = { live, replay, drive, fleet };
const main = document.getElementById("main");
const notice = document.getElementById("notice");
const keys = document.getElementById("keys");
const leave = document.getElementById("leave");

let server = null;
let asked = 0; // how many views were asked for: only the last one is shown
let retry = null; // the timer of another try to show the view
let current = null; // what the view returned: { stop, onKey }

function say(text) {
  notice.textContent = text ?? "";
  notice.hidden = !text;
}

function stop() {
  current?.stop?.();
  current = null;
}

async function show() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const view = VIEWS[name] ? name : "live";
  const number = ++asked;
  stop();
  clearTimeout(retry);
  say(null);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    server = await get("server");
  } catch (error) {
    if (number === asked && !main.querySelector("form.key")) {
      say(error.message);
      retry = setTimeout(show, 2000);
    }
    return;
  }
  if (number !== asked) return;
  describeServer();
  main.replaceChildren();
  if (server.state === "loading") {
    main.replaceChildren(h("p", { class: "empty" }, "The server loads its models."));
    retry = setTimeout(show, 1000);
    return;
  }
  current = VIEWS[view](main, { server, say, argument: decodeURIComponent(rest.join("/")) });
}

function describeServer() {
  const key = server.key ? `, key ${server.key}` : "";
  document.getElementById("server").textContent = `${server.version}, ${server.state}${key}`;
  leave.hidden = !server.key;
}

// Asks for a key, which a cookie keeps until the browser is closed.
function askForKey(error) {
  stop();
  const input = h("input", {
    type: "password",
    name: "key",
    autocomplete: "current-password",
    required: true,
    id: "key",
  });
  const problem = h("p", { class: "problem", role: "alert" });
  if (error.code === "forbidden") problem.textContent = error.message;
  const form = h(
    "form",
    {
      class: "key card",
      async onsubmit(event) {
        event.preventDefault();
        try {
          await startSession(input.value.trim());
          main.replaceChildren();
          show();
        } catch (refused) {
          problem.textContent = refused.message;
          input.select();
        }
      },
    },
    h("h1", {}, "Which key?"),
    h(
      "p",
      {},
      "Looking needs a key with the role read, planning and driving one that also has infer: ",
      h("code", {}, "lewm keys add NAME --role read --role infer --file KEYS"),
      ". It is kept until you close the browser.",
    ),
    h("label", { for: "key" }, "Key"),
    input,
    h("button", { type: "submit", class: "primary" }, "Open the console"),
    problem,
  );
  main.replaceChildren(form);
  input.focus();
}

window.addEventListener("console:key", (event) => askForKey(event.detail));
window.addEventListener("hashchange", show);
document.getElementById("help").addEventListener("click", () => keys.showModal());
leave.addEventListener("click", async () => {
  await endSession();
  show();
});
window.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event)) return;
  if (event.key === " " && event.target.closest?.("button, a")) return; // it presses that
  const names = Object.keys(VIEWS);
  if (event.key >= "1" && event.key <= String(names.length)) {
    location.hash = names[Number(event.key) - 1];
  } else if (event.key === "?") {
    keys.showModal();
  } else if (event.key === "/") {
    event.preventDefault();
    const field = document.getElementById("request-id");
    if (field) field.focus();
    else location.hash = "replay";
  } else if (!current?.onKey?.(event)) {
    return;
  }
  event.preventDefault();
});

show();
