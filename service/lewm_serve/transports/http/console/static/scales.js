// The scales of a plan's drawings. Plans that stand beside each other share them.

const DEADLINE_SHARE = 3; // a deadline that is further away would press the iterations together
const SHOWN_COSTS = 0.9; // the share of the costs below the upper edge

export function scalesOf(plan, beside = []) {
  const plans = [plan, ...beside];
  const mapped = plans.filter((one) => isSameMap(one.plane, plan.plane));
  const costs = plans
    .filter((one) => one.solver.objective === plan.solver.objective)
    .flatMap((one) => one.costs ?? [])
    .flatMap((part) => part.costs)
    .filter((cost) => cost !== null);
  return {
    map: boundsOf(mapped.flatMap(pointsOf)),
    costs: [Math.min(...costs), quantile(costs, SHOWN_COSTS)],
    time: 1.05 * Math.max(...plans.map(lastTime)),
    total: Math.max(...plans.map((one) => one.timing_ms.total)),
    steps: Math.max(...plans.flatMap((one) => (one.distance ? [one.distance.start, one.distance.end] : []))),
  };
}

export function showsDeadline(plan) {
  return plan.deadline_ms !== null && plan.deadline_ms <= DEADLINE_SHARE * endOf(plan);
}

export function endOf(plan) {
  return Math.max(plan.timing_ms.total, ...(plan.costs ?? []).map((part) => part.ended_ms));
}

const lastTime = (plan) => (showsDeadline(plan) ? Math.max(endOf(plan), plan.deadline_ms) : endOf(plan));

function isSameMap(one, other) {
  return one !== null && other !== null && one.by === other.by && one.axes.join() === other.axes.join();
}

// A goal by states may leave one coordinate open, which is null.
function pointsOf({ plane }) {
  return [plane.start, plane.goal ?? plane.start, ...plane.best, ...plane.iterations.flat(2)];
}

function boundsOf(points) {
  return [0, 1].map((axis) => {
    const values = points.map((point) => point[axis]).filter((value) => value !== null);
    return [Math.min(...values), Math.max(...values)];
  });
}

function quantile(values, level) {
  const ordered = [...values].sort((a, b) => a - b);
  return ordered[Math.min(ordered.length - 1, Math.floor(level * ordered.length))];
}
