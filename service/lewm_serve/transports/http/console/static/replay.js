// Replay: any of the last plans, and the same plan with other settings beside it.

import { get, post } from "./api.js";
import { empty, h, milliseconds, number, planRow, plansTable } from "./dom.js";
import { PlanView } from "./plan.js";
import { showSettings } from "./settings.js";
import { legendOf } from "./words.js";

export function replay(main, { server, say, argument }) {
  let stopped = false;
  const before = h("article", { class: "card plan" });
  const again = h("article", { class: "card plan", hidden: true });
  const form = h("form", { class: "card settings", hidden: true });
  const note = h("div");
  const list = h("tbody");
  const field = h("input", { id: "request-id", type: "search", placeholder: "request id", size: 36 });
  const find = h(
    "form",
    {
      class: "toolbar",
      onsubmit(event) {
        event.preventDefault();
        findPlan(field.value.trim());
      },
    },
    h("label", { for: "request-id" }, "Find a plan "),
    field,
    h("button", { type: "submit" }, "Find"),
  );
  const views = [
    new PlanView(before, { onIteration: (iteration) => views[1].go(iteration) }),
    new PlanView(again, { onIteration: (iteration) => views[0].go(iteration) }),
  ];
  const aside = h(
    "aside",
    { class: "card" },
    h("h2", {}, "Kept plans"),
    legendOf("recorded", "fallback", "anomalous"),
    plansTable(list),
  );
  const columns = h("div", { class: "with-list" }, h("div", {}, form, note, h("div", { class: "beside" }, before, again)), aside);
  main.replaceChildren(find, columns);
  before.append(empty("Choose a plan of the list, or find one by its request id: every answer has it, and so does the log."));

  async function listPlans() {
    try {
      const { plans } = await get("plans");
      if (stopped) return;
      if (!plans.length) {
        before.replaceChildren(empty("No plan is kept yet. ", h("a", { href: "#drive" }, "Drive"), " a simulated robot, or send a plan."));
      }
      list.replaceChildren(
        ...plans.reverse().map((plan) =>
          planRow(plan, {
            chosen: String(plan.number) === argument,
            open: () => {
              location.hash = `replay/${plan.number}`;
            },
          }),
        ),
      );
    } catch (error) {
      if (!stopped) say(error.message);
    }
  }

  async function findPlan(requestId) {
    if (!requestId) return;
    try {
      const { plans } = await get(`plans?request_id=${encodeURIComponent(requestId)}`);
      location.hash = `replay/${plans[0].number}`;
    } catch (error) {
      say(error.message);
    }
  }

  async function load(planNumber) {
    before.replaceChildren(empty("Loading …"));
    try {
      const plan = await get(`plans/${planNumber}`);
      if (stopped) return;
      views[0].show(plan);
      form.hidden = false;
      showSettings(form, plan, { server, planAgain: (settings) => planAgain(plan, settings) });
    } catch (error) {
      if (stopped) return;
      before.replaceChildren(empty(error.status === 404 ? "This plan is not kept any more: the server keeps the last ones only." : error.message));
    }
  }

  // The same plan with other settings, beside the first one.
  async function planAgain(plan, settings) {
    const made = await post(`plans/${plan.number}/replay`, settings);
    const repeated = await get(`plans/${made.number}`);
    if (stopped) return;
    again.hidden = false;
    columns.classList.add("compares");
    views[0].show(plan, [repeated]);
    views[1].show(repeated, [plan]);
    note.replaceChildren(compare(plan, repeated));
    listPlans();
  }

  function compare(plan, repeated) {
    const isSame = JSON.stringify(plan.actions) === JSON.stringify(repeated.actions);
    const hasCosts = plan.cost !== null && plan.solver.objective === repeated.solver.objective;
    const cost = hasCosts ? `cost ${number(plan.cost, 5)} → ${number(repeated.cost, 5)}; ` : "";
    return h(
      "p",
      { class: "compare", role: "status" },
      `Planned again: ${cost}${milliseconds(plan.total_ms)} → ${milliseconds(repeated.total_ms)}; `,
      isSame ? "the same actions." : "other actions.",
    );
  }

  listPlans();
  if (/^\d+$/.test(argument)) load(argument);
  else if (argument) findPlan(argument);
  return {
    stop() {
      stopped = true;
    },
    onKey(event) {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return false;
      if (!views[0].plan) return false;
      const iteration = Math.max(...views.map((view) => view.iteration));
      for (const view of views) view.go(iteration + (event.key === "ArrowLeft" ? -1 : 1));
      return true;
    },
  };
}
