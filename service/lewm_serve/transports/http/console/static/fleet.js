// Fleet: who asks, how fast they are answered, and whose frames look unusual.

import { get } from "./api.js";
import { empty, h, milliseconds, number } from "./dom.js";
import { terms } from "./words.js";

const EVERY_MS = 2000;
const COLUMNS = ["robot", "requests/s", "p50", "p95", "plans", "anomalous", "fallbacks", "errors", "protocol", "last seen"];

export function fleet(main, { say }) {
  let timer = null;
  let stopped = false;
  const tiles = h("div", { class: "tiles" });
  const body = h("tbody");
  const period = h("p", { class: "muted" });
  const table = h(
    "div",
    { class: "card" },
    h("table", { class: "fleet" }, h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", {}, name)))), body),
    period,
    terms("p50", "p95", "anomalous", "fallback", "protocol"),
  );
  const none = empty(
    "No request in the last minutes. Robots are listed here by the header ",
    h("code", {}, "Lewm-Robot"),
    ", or by their key.",
  );
  main.replaceChildren(tiles, none, table);

  async function poll() {
    if (!document.hidden) {
      try {
        const answer = await get("fleet");
        if (stopped) return;
        say(null);
        show(answer);
      } catch (error) {
        if (!stopped) say(error.message);
      }
    }
    if (!stopped) timer = setTimeout(poll, EVERY_MS);
  }

  function show({ total, robots, unlisted, server, window_s: window, rate_window_s: rateWindow }) {
    none.hidden = robots.length > 0;
    table.hidden = robots.length === 0;
    const hits = server["cache_requests_total:memory:hit"] ?? 0;
    const lookups = hits + (server["cache_requests_total:memory:miss"] ?? 0);
    const queued = ["encode", "predict", "plan"].reduce((sum, name) => sum + (server[`queued_requests:${name}`] ?? 0), 0);
    const inWindow = `last ${duration(window)}`;
    tiles.replaceChildren(
      tile("robots", String(robots.length + unlisted), "that sent requests", inWindow),
      tile("requests", `${number(total.per_s)}/s`, "on average", `last ${duration(rateWindow)}`),
      tile("latency", milliseconds(total.p50_ms), `median; p95 ${milliseconds(total.p95_ms)}`, inWindow),
      tile("queue", String(queued), "requests that wait", "now"),
      tile("cache", lookups ? `${Math.round((100 * hits) / lookups)} %` : "–", "of the frames were known", "since the start"),
      tile("anomalies", String(total.health.anomalous ?? 0), "requests with unusual frames", inWindow, total.health.anomalous > 0),
      tile("errors", String(sum(total.errors)), list(total.errors) || "none", inWindow, sum(total.errors) > 0),
    );
    period.textContent = `Requests/s are those of the last ${duration(rateWindow)}, all other numbers those of the last ${duration(window)}.`;
    body.replaceChildren(
      ...robots.map((robot) => {
        const anomalous = robot.health.anomalous ?? 0;
        const fallbacks = robot.plans.fallback ?? 0;
        const name = robot.name || "no name";
        const cells = [
          [number(robot.per_s), "number"],
          [milliseconds(robot.p50_ms), "number"],
          [milliseconds(robot.p95_ms), "number"],
          [String(sum(robot.plans)), "number"],
          [anomalous ? `✕ ${anomalous}` : "0", anomalous ? "number over" : "number"],
          [fallbacks ? `↩ ${fallbacks}` : "0", fallbacks ? "number over" : "number"],
          [list(robot.errors) || "0", sum(robot.errors) ? "over" : null],
          [robot.protocols.join(", "), null],
          [`${number(robot.seen_s_ago)} s ago`, "number"],
        ];
        return h(
          "tr",
          {},
          h("th", { scope: "row" }, robot.kind === "key" && robot.name ? `key ${name}` : name),
          // On a phone, where a row is a block, each cell begins with the name of its column.
          cells.map(([text, kind], index) => h("td", { class: kind, "data-column": COLUMNS[index + 1] }, text)),
        );
      }),
    );
  }

  poll();
  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
  };
}

function tile(name, value, about, period, isBad = false) {
  const notes = [about, period].map((text) => h("span", { class: "muted" }, text));
  return h("div", { class: isBad ? "tile over" : "tile" }, h("h2", {}, name), h("b", {}, value), notes);
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return `${minutes} minute${minutes === 1 ? "" : "s"}`;
}

const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

const list = (counts) => Object.entries(counts).map(([name, count]) => `${name} ${count}`).join(", ");
