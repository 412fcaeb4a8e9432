// One plan: what the robot saw, what the model imagined, how the search went.

import { empty, h, healthBadge, milliseconds, number, sourceOf, statusBadge, timeOf } from "./dom.js";
import { costPlot, fanPlot, timingBar } from "./plot.js";

const SCORES = [
  ["zscore", "latent norm, deviations", (health) => Math.abs(health.latent_norm_zscore ?? NaN)],
  ["mahalanobis", "Mahalanobis distance", (health) => health.latent_mahalanobis],
  ["surprise", "surprise", (health) => health.surprise],
  ["sigreg", "SIGReg of the stream", (health) => health.sigreg],
];

// Draws a plan into an element.
export class PlanView {
  constructor(element, { onIteration } = {}) {
    this.element = element;
    this.onIteration = onIteration;
    this.plan = null;
    this.iteration = 0;
  }

  show(plan) {
    this.plan = plan;
    this.iteration = Math.max(0, (plan.costs?.length ?? 1) - 1);
    this.element.replaceChildren(
      header(plan),
      plan.problem ? h("p", { class: "problem" }, plan.problem) : "",
      pictures(plan),
      h("div", { class: "columns" }, this.search(), this.facts()),
    );
    this.draw();
  }

  get iterations() {
    return this.plan?.costs?.length ?? 0;
  }

  // Goes to an iteration; false if there is none.
  go(iteration) {
    if (!this.iterations) return false;
    this.iteration = Math.min(Math.max(0, iteration), this.iterations - 1);
    this.draw();
    return true;
  }

  search() {
    const plan = this.plan;
    this.fan = h("div");
    this.costs = h("div");
    this.slider = h("input", {
      type: "range",
      min: "0",
      max: String(Math.max(0, this.iterations - 1)),
      "aria-label": "Iteration",
      oninput: () => {
        this.go(Number(this.slider.value));
        this.onIteration?.(this.iteration);
      },
    });
    this.caption = h("output");
    const missing = plan.costs
      ? null
      : empty(
          plan.fallback
            ? "A fallback answered: there is no search to show."
            : "The search of this plan was not recorded. Replay makes the plan again, with the same seed, and records it.",
        );
    return h(
      "section",
      {},
      h("h3", {}, "Candidates"),
      this.fan,
      plan.costs ? h("div", { class: "scrub" }, this.slider, this.caption) : null,
      missing,
      plan.costs ? h("h3", {}, "Cost by iteration") : null,
      this.costs,
    );
  }

  facts() {
    const { plan } = this;
    return h(
      "section",
      {},
      h("h3", {}, "Distance to go"),
      distance(plan),
      h("h3", {}, "Health"),
      health(plan),
      h("h3", {}, "Time"),
      timingBar(plan.timing_ms),
      h("h3", {}, "Plan"),
      details(plan),
    );
  }

  draw() {
    const { plan, iteration } = this;
    if (plan.plane) this.fan.replaceChildren(fanPlot(plan, iteration));
    if (!plan.costs) return;
    this.slider.value = String(iteration);
    const part = plan.costs[iteration];
    this.caption.textContent =
      `iteration ${iteration + 1} of ${plan.costs.length}: ${count(part.scored, "candidate")}, ` +
      `best ${number(part.costs[0])}`;
    this.costs.replaceChildren(costPlot(plan, iteration));
  }
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function header(plan) {
  return h(
    "div",
    { class: "plan-head" },
    h("h2", {}, sourceOf(plan)),
    statusBadge(plan),
    healthBadge(plan.health.status),
    h("span", { class: "muted" }, `${timeOf(plan.answered_at)} · ${plan.model} · ${plan.protocol}`),
  );
}

const BY = {
  decoder: "(the model's decoder)",
  nearest: "(the nearest frames of other plans)",
};

function pictures(plan) {
  const strip = plan.imagined
    ? h(
        "figure",
        { class: "strip" },
        h("div", {}, plan.imagined.map((url, step) =>
          h("img", { src: url, alt: `imagined, block ${step + 1}`, width: 96, height: 96 }))),
        h("figcaption", {}, `imagined along the ${plan.fallback ? "fallback's actions" : "plan"} ${BY[plan.imagined_by]}`),
      )
    : h(
        "figure",
        { class: "strip" },
        empty("No picture of what the model imagines: ", h("code", {}, "lewm models decoder MODEL DATA"), " trains what draws them."),
      );
  const now = plan.frames.length > 1 ? "now" : "the robot sees";
  return h(
    "div",
    { class: "pictures" },
    plan.frames.map((url, index) => {
      const back = plan.frames.length - 1 - index;
      return frame(url, back ? `${back} block${back > 1 ? "s" : ""} ago` : now, back > 0);
    }),
    strip,
    frame(plan.goal, "goal"),
  );
}

function frame(url, caption, isOld = false) {
  const picture = url
    ? h("img", { src: url, alt: caption, width: 144, height: 144 })
    : h("div", { class: "no-picture" }, "a latent, no picture");
  return h("figure", { class: isOld ? "old" : null }, picture, h("figcaption", {}, caption));
}

function distance(plan) {
  if (!plan.distance) return empty("The model has no learned distance, or a fallback answered.");
  const { start, end } = plan.distance;
  return h(
    "p",
    { class: "distance" },
    h("b", {}, number(start)),
    " steps now, ",
    h("b", {}, number(end)),
    " after the plan",
  );
}

function health(plan) {
  const rows = SCORES.map(([name, text, score]) => {
    const value = score(plan.health);
    const limit = plan.limits?.[name];
    if (value === null || value === undefined || Number.isNaN(value)) return null;
    const isOver = limit !== null && limit !== undefined && value > limit;
    return h(
      "tr",
      { class: isOver ? "over" : null },
      h("th", { scope: "row" }, text),
      h("td", {}, number(value)),
      h("td", {}, limit ? h("meter", { min: 0, max: 2 * limit, high: limit, value: Math.min(value, 2 * limit) }) : ""),
      h("td", { class: "muted" }, limit ? `limit ${number(limit)}` : "no limit"),
    );
  }).filter(Boolean);
  const reasons = plan.health.reasons;
  return h(
    "div",
    {},
    rows.length ? h("table", { class: "scores" }, h("tbody", {}, rows)) : null,
    reasons.length ? h("ul", { class: "reasons" }, reasons.map((reason) => h("li", {}, reason))) : null,
  );
}

function details(plan) {
  const solver = Object.entries(plan.solver)
    .map(([name, value]) => `${name} ${typeof value === "number" ? number(value) : value}`)
    .join(", ");
  const rows = [
    ["request id", h("code", {}, plan.request_id)],
    ["cost", number(plan.cost, 6)],
    ["searched", `${count(plan.iterations, "iteration")}, ${count(plan.candidates, "candidate")}`],
    ["solver", solver],
    ["seed", plan.seed],
    ["deadline", plan.deadline_ms === null ? "none" : milliseconds(plan.deadline_ms)],
    ["first action", plan.actions[0].map((value) => number(value)).join(", ")],
    ["backend", plan.backend],
    ["version", plan.version],
  ];
  return h("dl", { class: "details" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
