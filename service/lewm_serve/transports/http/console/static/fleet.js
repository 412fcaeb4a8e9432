// Fleet: who asks, how fast they are answered, and whose frames look unusual.

import { get } from "./api.js";
import { empty, h, milliseconds, number } from "./dom.js";

const EVERY_MS = 2000;

export function fleet(main, { say }) {
  let timer = null;
  let stopped = false;
  const tiles = h("div", { class: "tiles" });
  const body = h("tbody");
  const table = h(
    "div",
    { class: "card scroll" },
    h(
      "table",
      { class: "fleet" },
      h("thead", {}, h("tr", {}, ["robot", "requests/s", "p50", "p95", "plans", "anomalous", "fallbacks", "errors", "protocol", "last seen"].map((name) => h("th", {}, name)))),
      body,
    ),
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

  function show({ total, robots, unlisted, server, window_s: seconds }) {
    none.hidden = robots.length > 0;
    table.hidden = robots.length === 0;
    const hits = server["cache_requests_total:memory:hit"] ?? 0;
    const lookups = hits + (server["cache_requests_total:memory:miss"] ?? 0);
    const queued = ["encode", "predict", "plan"].reduce((sum, name) => sum + (server[`queued_requests:${name}`] ?? 0), 0);
    const minutes = Math.round(seconds / 60);
    tiles.replaceChildren(
      tile("robots", String(robots.length + unlisted), `in the last ${minutes} minutes`),
      tile("requests", `${number(total.per_s)}/s`, `${total.requests} in the table`),
      tile("latency", milliseconds(total.p50_ms), `median; p95 ${milliseconds(total.p95_ms)}`),
      tile("queue", String(queued), "requests that wait"),
      tile("cache", lookups ? `${Math.round((100 * hits) / lookups)} %` : "–", "of frames were known"),
      tile("anomalies", String(total.health.anomalous ?? 0), "requests with unusual frames", total.health.anomalous > 0),
      tile("errors", String(sum(total.errors)), list(total.errors) || "none", sum(total.errors) > 0),
    );
    body.replaceChildren(
      ...robots.map((robot) => {
        const anomalous = robot.health.anomalous ?? 0;
        const fallbacks = robot.plans.fallback ?? 0;
        const name = robot.name || "no name";
        return h(
          "tr",
          {},
          h("th", { scope: "row" }, robot.kind === "key" && robot.name ? `key ${name}` : name),
          h("td", { class: "number" }, number(robot.per_s)),
          h("td", { class: "number" }, milliseconds(robot.p50_ms)),
          h("td", { class: "number" }, milliseconds(robot.p95_ms)),
          h("td", { class: "number" }, String(sum(robot.plans))),
          h("td", { class: anomalous ? "number over" : "number" }, anomalous ? `✕ ${anomalous}` : "0"),
          h("td", { class: fallbacks ? "number over" : "number" }, fallbacks ? `↩ ${fallbacks}` : "0"),
          h("td", { class: sum(robot.errors) ? "over" : null }, list(robot.errors) || "0"),
          h("td", {}, robot.protocols.join(", ")),
          h("td", { class: "number" }, `${number(robot.seen_s_ago)} s ago`),
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

function tile(name, value, about, isBad = false) {
  return h("div", { class: isBad ? "tile over" : "tile" }, h("h2", {}, name), h("b", {}, value), h("span", { class: "muted" }, about));
}

const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

const list = (counts) => Object.entries(counts).map(([name, count]) => `${name} ${count}`).join(", ");
