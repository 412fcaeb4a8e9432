// Drawings: candidates in a plane, costs by iteration, and where the time went.

import { h, milliseconds, number, svg } from "./dom.js";
import { endOf, showsDeadline } from "./scales.js";
import { term } from "./words.js";

const SIDE = 320;
const MARGIN = 14;

// The candidates of one iteration, the best path, start, goal and regions, in the plane of the plan.
export function fanPlot(plan, iteration, { map }) {
  const { plane } = plan;
  const place = placer(map);
  const path = (line) =>
    "M" + [plane.start, ...line].map((point) => place(point).join(" ")).join("L");
  const candidates = plane.iterations[iteration] ?? [];
  const elites = plan.costs?.[iteration]?.elites ?? 0;
  const [startX, startY] = place(plane.start);
  const drawing = svg(
    "svg",
    {
      viewBox: `0 0 ${SIDE} ${SIDE}`,
      class: "fan",
      role: "img",
      "aria-label": `${candidates.length} candidates of iteration ${iteration + 1}, ${elites} of them elites`,
    },
    plane.regions.map((region) => outline(region, place)),
    candidates.slice(elites).map((line) => svg("path", { d: path(line), class: "candidate" })),
    candidates.slice(0, elites).map((line) => svg("path", { d: path(line), class: "elite" })),
    svg("path", { d: path(plane.best), class: "best" }),
    plane.best.map((point) => {
      const [x, y] = place(point);
      return svg("circle", { cx: x, cy: y, r: 3, class: "best-point" });
    }),
    svg("circle", { cx: startX, cy: startY, r: 6, class: "start" }),
    plane.goal ? goalMark(place(plane.goal)) : null,
  );
  return h(
    "figure",
    {},
    drawing,
    h(
      "figcaption",
      {},
      legend("start", "now"),
      plane.goal ? legend("goal", "goal") : null,
      legend("best", plan.fallback ? "the fallback's actions" : "plan"),
      plane.regions.length ? legend("region", "to avoid") : null,
      elites ? legend("elite", term("elites")) : null,
      candidates.length > elites ? legend("candidate", "other ", term("candidates")) : null,
      h("span", {}, "across: ", axisName(plane, 0), ", down: ", axisName(plane, 1)),
    ),
  );
}

function axisName(plane, axis) {
  return plane.by === "probe" ? plane.axes[axis] : term("component", plane.axes[axis]);
}

// A goal that leaves one coordinate open is a line.
function goalMark([x, y]) {
  if (x === null) return svg("path", { d: `M0 ${y}H${SIDE}`, class: "goal-line" });
  if (y === null) return svg("path", { d: `M${x} 0V${SIDE}`, class: "goal-line" });
  return svg("path", { d: `M${x} ${y - 8}l8 8l-8 8l-8 -8z`, class: "goal" });
}

function outline({ kind, centre, sizes }, place) {
  const [left, top] = place(centre.map((value, axis) => value - sizes[axis]));
  const [right, bottom] = place(centre.map((value, axis) => value + sizes[axis]));
  const [width, height] = [right - left, bottom - top];
  if (kind === "box") return svg("rect", { x: left, y: top, width, height, class: "region" });
  return svg("ellipse", { cx: left + width / 2, cy: top + height / 2, rx: width / 2, ry: height / 2, class: "region" });
}

function legend(kind, ...text) {
  return h("span", { class: `legend ${kind}` }, ...text);
}

// What turns points with these bounds into places of the drawing; null stays null.
function placer(bounds) {
  let spans = bounds.map(([low, high]) => Math.max(1e-6, high - low));
  // One scale for both axes, unless one of them would hardly be seen.
  if (Math.max(...spans) < 8 * Math.min(...spans)) spans = spans.map(() => Math.max(...spans));
  const inner = SIDE - 2 * MARGIN;
  return (point) =>
    point.map((value, axis) => {
      if (value === null) return null;
      const [low, high] = bounds[axis];
      const centred = (value - (low + high) / 2) / spans[axis];
      return Math.round(10 * (SIDE / 2 + inner * centred)) / 10;
    });
}

const WIDTH = 420;
const HEIGHT = 160;

// The costs of the candidates by the time at which their iteration ended, and the deadline.
export function costPlot(plan, iteration, { costs: [low, high], time: last }) {
  const deadline = plan.deadline_ms;
  const end = endOf(plan);
  const x = (time) => 46 + (WIDTH - 60) * (time / last);
  const y = (cost) => 26 + (HEIGHT - 54) * (1 - (Math.min(cost, high) - low) / (high - low || 1));
  let best = Infinity;
  const line = [];
  const dots = [];
  plan.costs.forEach((part, index) => {
    const chosen = index === iteration ? " chosen" : "";
    part.costs.forEach((cost, place) => {
      if (cost === null) return;
      const kind = place < part.elites ? "elite-dot" : "candidate-dot";
      dots.push(svg("circle", { cx: x(part.ended_ms), cy: y(cost), r: 2.5, class: kind + chosen }));
    });
    best = Math.min(best, ...part.costs.filter((cost) => cost !== null));
    line.push(`${x(part.ended_ms)} ${y(best)}`);
  });
  const axis = HEIGHT - 20;
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "costs", role: "img", "aria-label": "Cost by iteration" },
    svg("path", { d: `M46 20V${axis}H${WIDTH - 8}`, class: "axis" }),
    svg("path", { d: `M${x(plan.costs[iteration].ended_ms)} 20V${axis}`, class: "cursor" }),
    dots,
    svg("path", { d: "M" + line.join("L"), class: "best-cost" }),
    label(42, y(low) + 4, number(low), "end"),
    label(42, y(high) + 4, number(high), "end"),
    x(end) > 100 ? label(46, HEIGHT - 5, "0", "middle") : null,
    label(Math.min(x(end), WIDTH - 26), HEIGHT - 5, milliseconds(end), "middle"),
    deadlineMark(plan, x),
  );
  return h(
    "figure",
    {},
    drawing,
    h(
      "figcaption",
      {},
      legend("best", "best so far"),
      legend("elite", term("elites")),
      legend("candidate", "other ", term("candidates")),
      h("span", {}, "the highest ones are on the upper edge"),
    ),
  );
}

// A line at the deadline. If it is far away, an arrow points to it.
function deadlineMark(plan, x) {
  const { deadline_ms: deadline } = plan;
  if (deadline === null) return null;
  if (!showsDeadline(plan)) return label(WIDTH - 8, 12, `deadline ${milliseconds(deadline)} →`, "end");
  return [
    svg("path", { d: `M${x(deadline)} 20V${HEIGHT - 20}`, class: "deadline" }),
    label(Math.min(x(deadline), WIDTH - 26), 14, "deadline", "middle"),
  ];
}

function label(x, y, text, anchor) {
  return svg("text", { x, y, "text-anchor": anchor }, text);
}

const STAGES = ["queue", "decode", "encode", "solve"];

// Where the milliseconds went. A bar as wide as the drawing is `longest` milliseconds.
export function timingBar(timing, { total: longest }) {
  const rest = Math.max(0, timing.total - STAGES.reduce((sum, name) => sum + timing[name], 0));
  const parts = [...STAGES.map((name) => [name, timing[name], name]), ["the rest", rest, "rest"]];
  let left = 0;
  const bars = parts.map(([, value, kind]) => {
    const width = (100 * value) / (longest || 1);
    const bar = svg("rect", { x: left, y: 0, width, height: 10, class: `stage ${kind}` });
    left += width;
    return bar;
  });
  return h(
    "div",
    { class: "timing" },
    svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: "bar" }, bars),
    h(
      "ul",
      {},
      parts.map(([name, value, kind]) =>
        h("li", {}, h("span", { class: `swatch ${kind}` }), term(name), ` ${milliseconds(value)}`),
      ),
      h("li", {}, h("b", {}, `total ${milliseconds(timing.total)}`)),
    ),
  );
}

// How far the goal is before and after the plan. A bar as wide as the drawing is `most` steps.
export function distanceBars({ start, end }, { steps: most }) {
  const row = (name, steps) =>
    h(
      "li",
      {},
      h("span", {}, h("b", {}, number(steps)), ` steps ${name}`),
      svg(
        "svg",
        { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: "bar" },
        svg("rect", { x: 0, y: 0, width: (100 * Math.max(0, steps)) / (most || 1), height: 10, class: "steps" }),
      ),
    );
  return h("ul", { class: "distance" }, row("now", start), row("after the plan", end));
}

// A line of values, oldest first, such as the distance to go, above 0.
export function sparkline(values, text) {
  const high = Math.max(...values, 1e-9);
  const step = 190 / Math.max(1, values.length - 1);
  const d = values.map((value, index) => `${40 + index * step} ${38 - (34 * value) / high}`).join("L");
  return svg(
    "svg",
    { viewBox: "0 0 234 42", class: "spark", role: "img", "aria-label": text },
    svg("path", { d: "M40 3V39H234", class: "axis" }),
    svg("path", { d: `M${d}`, class: "best-cost" }),
    label(36, 11, number(high), "end"),
    label(36, 41, "0", "end"),
  );
}
