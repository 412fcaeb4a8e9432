// One plan: what the robot saw, what the model imagined, how the search went.

import { empty, h, healthBadge, milliseconds, number, sourceOf, statusBadge, timeOf } from "./dom.js";
import { costPlot, distanceBars, fanPlot, timingBar } from "./plot.js";
import { scalesOf } from "./scales.js";
import { goalInWords, statesTable } from "./states.js";
import { term } from "./words.js";

const SCORES = [
  ["zscore", "latent norm", (health) => Math.abs(health.latent_norm_zscore ?? NaN)],
  ["mahalanobis", "Mahalanobis distance", (health) => health.latent_mahalanobis],
  ["surprise", "surprise", (health) => health.surprise],
  ["sigreg", "SIGReg", (health) => health.sigreg],
];

const HEALTH = {
  ok: "The frames look like those that the model was trained on.",
  degraded: "The frames of all robots together look less usual than those of the training.",
  anomalous: "The frames, or the way from one to the next, are not as the model knows them.",
  uncalibrated: "The model has no calibration, so nobody knows whether these frames are usual.",
  unknown: "A fallback answered before the frames were seen.",
};

// Draws a plan into an element.
export class PlanView {
  constructor(element, { onIteration } = {}) {
    this.element = element;
    this.onIteration = onIteration;
    this.plan = null;
    this.iteration = 0;
  }

  // Plans that stand beside this one have the same scales.
  show(plan, beside = []) {
    if (plan !== this.plan) this.iteration = Math.max(0, (plan.costs?.length ?? 1) - 1);
    this.plan = plan;
    this.scales = scalesOf(plan, beside);
    this.element.replaceChildren(
      header(plan),
      h("div", {}, plan.problem ? h("p", { class: "problem" }, plan.problem) : null, pictures(plan)),
      h("div", { class: "columns" }, this.search(), this.facts()),
    );
    this.draw();
  }

  // Goes to an iteration, or to the final mean after the last one; false if there is none.
  go(iteration) {
    if (!this.plan?.costs?.length) return false;
    this.iteration = Math.min(Math.max(0, iteration), this.plan.costs.length - 1);
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
      max: String(Math.max(0, (plan.costs?.length ?? 0) - 1)),
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
            : ["The search of this plan was not recorded: the server records two a second. ", planAgain(plan), " gives the same plan, and records its search."],
        );
    return h(
      "section",
      {},
      h("h3", {}, term("candidates")),
      this.fan,
      plan.costs ? h("div", { class: "scrub" }, this.slider, this.caption) : null,
      missing,
      plan.costs ? h("h3", {}, term("cost"), " by ", term("iteration")) : null,
      this.costs,
    );
  }

  facts() {
    const { plan } = this;
    return h(
      "section",
      {},
      plan.goal_state ? null : h("h3", {}, "Distance ", term("to go")),
      plan.goal_state ? null : distance(plan, this.scales),
      statesTable(plan),
      h("h3", {}, "Health"),
      health(plan),
      h("h3", {}, "Time"),
      timingBar(plan.timing_ms, this.scales),
      h("h3", {}, "Plan"),
      details(plan),
    );
  }

  draw() {
    const { plan, iteration, scales } = this;
    if (plan.plane) this.fan.replaceChildren(fanPlot(plan, iteration, scales));
    if (!plan.costs?.length) return;
    this.slider.value = String(iteration);
    this.slider.setAttribute("aria-valuetext", nameOf(plan, iteration));
    const part = plan.costs[iteration];
    this.caption.replaceChildren(
      part.is_final_mean ? term("final mean", nameOf(plan, iteration)) : nameOf(plan, iteration),
      part.is_final_mean
        ? `: cost ${number(part.costs[0])}`
        : `: ${count(part.scored, "candidate")}, best cost ${number(part.costs[0])}`,
    );
    this.costs.replaceChildren(costPlot(plan, iteration, scales));
  }
}

function planAgain(plan) {
  if (location.hash.startsWith("#replay")) return "“Plan again”, above,";
  return h("a", { href: `#replay/${plan.number}` }, "“Plan again” in Replay");
}

function nameOf(plan, iteration) {
  const iterations = plan.costs.filter((part) => !part.is_final_mean).length;
  if (!plan.costs[iteration].is_final_mean) return `iteration ${iteration + 1} of ${iterations}`;
  return `final mean, after ${count(iterations, "iteration")}`;
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
    plan.goal_state ? goalInWords(plan.goal_state) : frame(plan.goal, "goal"),
  );
}

function frame(url, caption, isOld = false) {
  const picture = url
    ? h("img", { src: url, alt: caption, width: 144, height: 144 })
    : h("div", { class: "no-picture" }, "a latent, which has no picture");
  return h("figure", { class: isOld ? "old" : null }, picture, h("figcaption", {}, caption));
}

function distance(plan, scales) {
  if (!plan.distance) return empty("The model has no learned distance, or a fallback answered.");
  return distanceBars(plan.distance, scales);
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
      h("th", { scope: "row" }, term(text)),
      h("td", {}, number(value)),
      h("td", {}, limit ? h("meter", { min: 0, max: 2 * limit, high: limit, value: Math.min(value, 2 * limit) }) : ""),
      h("td", { class: "muted" }, limit ? `limit ${number(limit)}` : "no limit"),
    );
  }).filter(Boolean);
  const reasons = plan.health.reasons;
  return h(
    "div",
    {},
    h("p", { class: "muted" }, HEALTH[plan.health.status]),
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
    [term("cost"), number(plan.cost, 6)],
    ["searched", `${count(plan.iterations, "iteration")}, ${count(plan.candidates, "candidate")}`],
    [term("solver"), solver],
    [term("seed"), plan.seed],
    ["deadline", plan.deadline_ms === null ? "none" : milliseconds(plan.deadline_ms)],
    ["first action", plan.actions[0].map((value) => number(value)).join(", ")],
    [term("backend"), plan.backend],
    ["version", plan.version],
  ];
  return h("dl", { class: "details" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
