// Drawings: candidates in a plane, costs by iteration, and where the time went.

import { h, milliseconds, number, svg } from "./dom.js";

const SIDE = 320;
const MARGIN = 14;

// The candidates of one iteration, the best path, start and goal, in the plane of the plan.
export function fanPlot(plan, iteration) {
  const { plane } = plan;
  const points = [plane.start, plane.goal, ...plane.best, ...plane.iterations.flat(2)];
  const scale = scaleOf(points);
  const path = (line) =>
    "M" + [plane.start, ...line].map((point) => scale(point).join(" ")).join("L");
  const candidates = plane.iterations[iteration] ?? [];
  const elites = plan.costs?.[iteration]?.elites ?? 0;
  const [startX, startY] = scale(plane.start);
  const [goalX, goalY] = scale(plane.goal);
  const drawing = svg(
    "svg",
    {
      viewBox: `0 0 ${SIDE} ${SIDE}`,
      class: "fan",
      role: "img",
      "aria-label": `${candidates.length} candidates of iteration ${iteration + 1}, ${elites} of them elites`,
    },
    candidates.slice(elites).map((line) => svg("path", { d: path(line), class: "candidate" })),
    candidates.slice(0, elites).map((line) => svg("path", { d: path(line), class: "elite" })),
    svg("path", { d: path(plane.best), class: "best" }),
    plane.best.map((point) => {
      const [x, y] = scale(point);
      return svg("circle", { cx: x, cy: y, r: 3, class: "best-point" });
    }),
    svg("circle", { cx: startX, cy: startY, r: 6, class: "start" }),
    svg("path", {
      d: `M${goalX} ${goalY - 8}l8 8l-8 8l-8 -8z`,
      class: "goal",
    }),
  );
  return h(
    "figure",
    {},
    drawing,
    h(
      "figcaption",
      {},
      legend("start", "now"),
      legend("goal", "goal"),
      legend("best", plan.fallback ? "the fallback's actions" : "plan"),
      elites ? legend("elite", "elites") : null,
      candidates.length ? legend("candidate", "other candidates") : null,
      h("span", { class: "muted" }, `across: ${plane.axes[0]}, down: ${plane.axes[1]}`),
    ),
  );
}

function legend(kind, text) {
  return h("span", { class: `legend ${kind}` }, text);
}

function scaleOf(points) {
  const bounds = [0, 1].map((axis) => {
    const values = points.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
  let spans = bounds.map(([low, high]) => Math.max(1e-6, high - low));
  // One scale for both axes, unless one of them would hardly be seen.
  if (Math.max(...spans) < 8 * Math.min(...spans)) spans = spans.map(() => Math.max(...spans));
  const inner = SIDE - 2 * MARGIN;
  return (point) =>
    point.map((value, axis) => {
      const [low, high] = bounds[axis];
      const centred = (value - (low + high) / 2) / spans[axis];
      return Math.round(10 * (SIDE / 2 + inner * centred)) / 10;
    });
}

const WIDTH = 420;
const HEIGHT = 160;

// The costs of the candidates by the time at which their iteration ended, and the deadline.
export function costPlot(plan, iteration) {
  const ends = plan.costs.map((part) => part.ended_ms);
  const deadline = plan.deadline_ms;
  const total = Math.max(plan.timing_ms.total, ...ends);
  // A deadline that is far away would press the iterations together. Then an arrow points to it.
  const showsDeadline = deadline !== null && deadline <= 3 * total;
  const last = showsDeadline ? Math.max(total, deadline) * 1.05 : total * 1.05;
  const costs = plan.costs.flatMap((part) => part.costs).filter((cost) => cost !== null);
  const low = Math.min(...costs);
  const high = quantile(costs, 0.9);
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
  const chosen = plan.costs[iteration];
  const axis = HEIGHT - 20;
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "costs", role: "img", "aria-label": "Cost by iteration" },
    svg("path", { d: `M46 20V${axis}H${WIDTH - 8}`, class: "axis" }),
    chosen
      ? svg("path", { d: `M${x(chosen.ended_ms)} 20V${axis}`, class: "cursor" })
      : null,
    dots,
    svg("path", { d: "M" + line.join("L"), class: "best-cost" }),
    showsDeadline
      ? svg("path", { d: `M${x(deadline)} 20V${axis}`, class: "deadline" })
      : null,
    label(42, y(low) + 4, number(low), "end"),
    label(42, y(high) + 4, number(high), "end"),
    label(46, HEIGHT - 5, "0", "middle"),
    label(x(total), HEIGHT - 5, milliseconds(total), "middle"),
    showsDeadline ? label(x(deadline), HEIGHT - 5, "deadline", "middle") : null,
    !showsDeadline && deadline !== null
      ? label(WIDTH - 8, 12, `deadline ${milliseconds(deadline)} →`, "end")
      : null,
  );
  return h(
    "figure",
    {},
    drawing,
    h(
      "figcaption",
      {},
      legend("best", "best so far"),
      legend("elite", "elites"),
      legend("candidate", "other candidates"),
    ),
  );
}

function label(x, y, text, anchor) {
  return svg("text", { x, y, "text-anchor": anchor }, text);
}

function quantile(values, level) {
  const ordered = [...values].sort((a, b) => a - b);
  return ordered[Math.min(ordered.length - 1, Math.floor(level * ordered.length))];
}

const STAGES = ["queue", "decode", "encode", "solve"];

// Where the milliseconds went.
export function timingBar(timing) {
  const other = Math.max(0, timing.total - STAGES.reduce((sum, name) => sum + timing[name], 0));
  const parts = [...STAGES.map((name) => [name, timing[name]]), ["other", other]];
  const total = timing.total || 1;
  let left = 0;
  const bars = parts.map(([name, value]) => {
    const bar = svg("rect", {
      x: (100 * left) / total,
      y: 0,
      width: (100 * value) / total,
      height: 10,
      class: `stage ${name}`,
    });
    left += value;
    return bar;
  });
  return h(
    "div",
    { class: "timing" },
    svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: "bar" }, bars),
    h(
      "ul",
      {},
      parts.map(([name, value]) =>
        h("li", {}, h("span", { class: `swatch ${name}` }), `${name} ${milliseconds(value)}`),
      ),
      h("li", {}, h("b", {}, `total ${milliseconds(timing.total)}`)),
    ),
  );
}

// A line of values, oldest first, such as the distance to go.
export function sparkline(values, text) {
  const high = Math.max(...values, 1e-9);
  const step = 200 / Math.max(1, values.length - 1);
  const d = values.map((value, index) => `${index * step} ${38 - (34 * value) / high}`).join("L");
  return svg(
    "svg",
    { viewBox: "0 0 200 40", class: "spark", role: "img", "aria-label": text },
    svg("path", { d: "M0 39H200", class: "axis" }),
    svg("path", { d: `M${d}`, class: "best-cost" }),
  );
}
