// Replay: any of the last plans, and the same plan with other settings beside it.

import { get, post } from "./api.js";
import { empty, h, milliseconds, number, planRow, plansTable } from "./dom.js";
import { PlanView } from "./plan.js";

const COMMON = ["samples", "iterations", "horizon"];

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
    new PlanView(before, { onIteration: (iteration) => views[1].plan && views[1].go(iteration) }),
    new PlanView(again, { onIteration: (iteration) => views[0].go(iteration) }),
  ];
  const aside = h(
    "aside",
    { class: "card" },
    h("h2", {}, "Kept plans"),
    plansTable(list),
  );
  main.replaceChildren(
    find,
    h("div", { class: "with-list" }, h("div", {}, form, note, h("div", { class: "beside" }, before, again)), aside),
  );
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
      showForm(plan);
    } catch (error) {
      if (stopped) return;
      before.replaceChildren(empty(error.status === 404 ? "This plan is not kept any more: the server keeps the last ones only." : error.message));
    }
  }

  function showForm(plan) {
    form.hidden = false;
    if (!server.may_plan) {
      form.replaceChildren(empty("Planning again needs a key with the role infer."));
      return;
    }
    const solver = h("select", { name: "name" },
      Object.keys(server.solvers).map((name) => h("option", { value: name, selected: name === plan.solver.name }, name)));
    const inputs = COMMON.map((name) =>
      h("input", { name, type: "number", min: "1", value: String(plan.solver[name]), required: true }));
    const parts = server.models.find((model) => model.name === plan.model)?.parts ?? [];
    const objective = h("select", { name: "objective" },
      ["latent", ...(parts.includes("distance") ? ["distance"] : [])].map((name) =>
        h("option", { value: name, selected: name === plan.solver.objective }, name)));
    const seed = h("input", { name: "seed", value: plan.seed, pattern: "[0-9]{1,19}", size: 12, required: true });
    const button = h("button", { type: "submit", class: "primary" }, "Plan again");
    const problem = h("p", { class: "problem", role: "alert" });
    form.onsubmit = async (event) => {
      event.preventDefault();
      button.disabled = true;
      problem.textContent = "";
      const settings = { name: solver.value, objective: objective.value };
      COMMON.forEach((name, index) => (settings[name] = Number(inputs[index].value)));
      try {
        const made = await post(`plans/${plan.number}/replay`, { solver: settings, seed: seed.value });
        const repeated = await get(`plans/${made.number}`);
        if (stopped) return;
        again.hidden = false;
        views[1].show(repeated);
        note.replaceChildren(compare(plan, repeated));
        listPlans();
      } catch (error) {
        problem.textContent = error.message;
      } finally {
        button.disabled = false;
      }
    };
    form.replaceChildren(
      labelled("solver", solver),
      ...COMMON.map((name, index) => labelled(name, inputs[index])),
      labelled("objective", objective),
      labelled("seed", seed),
      button,
      problem,
    );
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
      const step = event.key === "ArrowLeft" ? -1 : 1;
      const open = views.filter((view) => view.plan);
      const iteration = Math.max(...open.map((view) => view.iteration));
      for (const view of open) view.go(iteration + step);
      return true;
    },
  };
}

function labelled(name, control) {
  return h("label", {}, h("span", {}, name), control);
}
