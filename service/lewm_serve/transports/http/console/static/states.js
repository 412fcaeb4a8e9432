// Goals by states and regions to avoid, in words and numbers.

import { h, number } from "./dom.js";

// The goal in the place of its picture.
export function goalInWords(states) {
  const lines = Object.entries(states).map(([name, value]) => h("div", {}, `${name} ${number(value)}`));
  return h("figure", {}, h("div", { class: "no-picture goal-states" }, lines), h("figcaption", {}, "goal, given by states"));
}

// What the plan does to the states that the model's probe reads; nothing for plans without any.
export function statesTable(plan) {
  const { states, goal_state: goal, avoid, violations } = plan;
  if (!goal && !avoid.length) return null;
  const names = Object.keys(states?.start ?? goal ?? {});
  const rows = names.map((name) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h("td", { class: "number" }, number(states?.start[name])),
      h("td", { class: "number" }, number(states?.end[name])),
      goal ? h("td", { class: "number" }, number(goal[name])) : null,
    ),
  );
  const titles = ["state", "now", "after the plan", ...(goal ? ["goal"] : [])];
  const steps = violations.map((step) => step + 1).join(", ");
  return [
    h("h3", {}, "States, as the model reads them"),
    names.length
      ? h("table", { class: "states" }, h("thead", {}, h("tr", {}, titles.map((name) => h("th", {}, name)))), h("tbody", {}, rows))
      : null,
    avoid.length ? h("ul", { class: "regions" }, avoid.map((region) => h("li", {}, `keeps out of ${inWords(region)}`))) : null,
    steps ? h("p", { class: "problem" }, `The imagined way enters a region in block ${steps}.`) : null,
  ];
}

function inWords({ state, centre, radius }) {
  if (state) {
    const ranges = Object.entries(state).map(([name, [low, high]]) => `${name} ${number(low)} to ${number(high)}`);
    return `the box ${ranges.join(", ")}`;
  }
  const point = Object.entries(centre).map(([name, value]) => `${name} ${number(value)}`);
  return `the disc of radius ${number(radius)} around ${point.join(", ")}`;
}
