// The settings with which a plan is made again.

import { empty, h } from "./dom.js";
import { terms } from "./words.js";

const WORDS = ["solver", "samples", "iteration", "horizon", "elites", "objective", "seed"];

// Fills a form. `planAgain` gets the settings, and resolves when the plan is shown.
export function showSettings(form, plan, { server, planAgain }) {
  const model = server.models.find(({ name }) => name === plan.model);
  if (!server.may_plan || !model) {
    form.replaceChildren(empty(model
      ? "Planning again needs a key with the role infer."
      : `The model ${plan.model} is not served any more, so this plan cannot be made again.`));
    return;
  }
  const solver = select("name", Object.keys(model.solvers), plan.solver.name);
  const sizes = h("div", { class: "settings" });
  const origin = h("p", { class: "muted" });
  const objective = select("objective", objectivesOf(plan, model), plan.solver.objective);
  const seed = h("input", { name: "seed", value: plan.seed, pattern: "[0-9]{1,19}", size: 20, required: true });
  const button = h("button", { type: "submit", class: "primary" }, "Plan again");
  const problem = h("p", { class: "problem", role: "alert" });

  // The fields of the chosen solver. Those of the plan's own begin with the plan's values.
  function showSizes() {
    const isOwn = solver.value === plan.solver.name;
    const usual = model.solvers[solver.value];
    sizes.replaceChildren(
      ...Object.keys(usual).map((name) =>
        labelled(name, h("input", { name, type: "number", min: "1", value: String((isOwn ? plan.solver : usual)[name]), required: true }))),
    );
    origin.textContent = originOf(solver.value);
  }

  function originOf(name) {
    if (name === plan.solver.name) return "These are the settings of the plan.";
    if (name === model.card_solver) return `These are the settings in the card of ${model.name}.`;
    return `The card of ${model.name} has settings for ${model.card_solver} only. These are general ones of ${name}, with the card's horizon.`;
  }

  solver.addEventListener("change", showSizes);
  form.onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    problem.textContent = "";
    const settings = { name: solver.value, objective: objective.value };
    for (const { name, value } of sizes.querySelectorAll("input")) settings[name] = Number(value);
    try {
      await planAgain({ solver: settings, seed: seed.value });
    } catch (error) {
      problem.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  };
  form.replaceChildren(
    labelled("solver", solver),
    sizes,
    labelled("objective", objective),
    labelled("seed", seed),
    button,
    origin,
    terms(...WORDS),
    problem,
  );
  showSizes();
}

// A goal by states has an objective of its own.
function objectivesOf(plan, model) {
  if (plan.goal_state) return [plan.solver.objective];
  return model.parts.includes("distance") ? ["latent", "distance"] : ["latent"];
}

function select(name, values, chosen) {
  return h("select", { name }, values.map((value) => h("option", { value, selected: value === chosen }, value)));
}

function labelled(name, control) {
  return h("label", {}, h("span", {}, name), control);
}
