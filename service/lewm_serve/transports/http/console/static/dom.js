// Elements, numbers as text, and what the views share.

const SVG = "http://www.w3.org/2000/svg";

// An element. Attributes whose names begin with "on" are listeners; null and false leave one out.
// Children are elements or text, which is never parsed as HTML.
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value >= 10000 ? `${number(value / 1000)} s` : `${number(value)} ms`;
}

export function timeOf(seconds) {
  return new Date(1000 * seconds).toLocaleTimeString([], { hour12: false });
}

export function sourceOf(plan) {
  if (plan.replay_of !== null) return `plan ${plan.replay_of} again`;
  return plan.robot ?? (plan.key ? `key ${plan.key}` : "no name");
}

const MARKS = { ok: "✓", degraded: "△", anomalous: "✕", uncalibrated: "?", unknown: "?" };

// A word with a mark, so that it does not depend on colours alone.
export function healthBadge(status) {
  return h("span", { class: `badge health-${status}` }, `${MARKS[status] ?? ""} ${status}`);
}

// In a list, an arrow stands for the word fallback.
export function statusBadge(plan, isInList = false) {
  if (plan.fallback) {
    const { controller, reason } = plan.fallback;
    const text = `${isInList ? "" : "fallback "}${controller}: ${reason}`;
    return h("span", { class: "badge fallback", title: `fallback ${text}` }, `↩ ${text}`);
  }
  return h("span", { class: "badge" }, plan.status);
}

// A table of plans, the newest first, whose rows are filled by planRow. ◉: its search is recorded.
export function plansTable(rows) {
  const titles = ["", "time", "robot", "answer", "ms"].map((name) => h("th", {}, name));
  return h("table", { class: "plans" }, h("thead", {}, h("tr", {}, titles)), rows);
}

// A plan in that table. A click anywhere in the row opens it.
export function planRow(plan, { chosen = false, open }) {
  return h(
    "tr",
    { "data-number": plan.number, class: chosen ? "chosen" : null, onclick: open },
    h("td", { class: "recorded", title: plan.traced ? "the search is recorded" : null }, plan.traced ? "◉" : ""),
    h("td", {}, timeOf(plan.answered_at)),
    h("td", {}, h("a", { href: `#replay/${plan.number}` }, sourceOf(plan))),
    h("td", {}, statusBadge(plan, true), " ", healthBadge(plan.health)),
    h("td", { class: "number" }, milliseconds(plan.total_ms)),
  );
}

export function empty(...children) {
  return h("p", { class: "empty" }, ...children);
}

export function isTyping(event) {
  return event.target.closest?.("input, select, textarea, dialog") !== null;
}
