// Live: plans as they come.

import { get } from "./api.js";
import { empty, h, number, planRow, plansTable, sourceOf } from "./dom.js";
import { PlanView } from "./plan.js";
import { sparkline } from "./plot.js";
import { legendOf, term } from "./words.js";

const EVERY_MS = 1000;
const KEPT = 240;
const LISTED = 30;

export function live(main, { say }) {
  let timer = null;
  let stopped = false;
  let isPaused = false;
  let newest = null;
  let plans = [];
  let shown = null;

  const filter = h("select", { id: "robot", onchange: () => choose(true) }, h("option", { value: "" }, "all robots"));
  const pause = h("button", { type: "button", onclick: () => setPaused(!isPaused) }, "Pause");
  // Who works with a plan keeps it: a newer one would take the place of what is in use.
  const panel = h("article", { class: "card plan", onfocusin: () => setPaused(true) });
  const list = h("tbody");
  const spark = h("div", { class: "to-go" });
  const view = new PlanView(panel);
  const table = plansTable(list);
  panel.append(nothing());
  main.replaceChildren(
    h("div", { class: "toolbar" }, h("label", { for: "robot" }, "Robot "), filter, pause),
    h("div", { class: "with-list" }, h("div", {}, spark, panel), h("aside", { class: "card" }, h("h2", {}, "Newest plans"), legendOf("recorded", "fallback", "anomalous"), table)),
  );

  function nothing() {
    return empty(
      "No plan yet. As soon as a robot asks for one, it is shown here. ",
      h("a", { href: "#drive" }, "Drive"),
      " a simulated robot, or send a plan as the ",
      h("a", { href: "docs" }, "docs"),
      " show.",
    );
  }

  function setPaused(paused) {
    isPaused = paused;
    pause.textContent = paused ? "Resume" : "Pause";
    pause.classList.toggle("primary", paused);
  }

  async function poll() {
    if (!document.hidden) {
      try {
        // At first, the last plans are enough.
        const answer = await get(`plans?after=${newest ?? 0}`);
        if (stopped) return;
        say(null);
        if (newest !== null && answer.newest < newest) {
          plans = []; // the server was started again
          newest = 0;
        } else {
          newest = answer.newest;
        }
        plans = [...plans, ...answer.plans.filter((plan) => plan.replay_of === null)].slice(-KEPT);
        listRobots();
        listPlans();
        if (!isPaused) await choose(false);
      } catch (error) {
        if (!stopped) say(error.message);
      }
    }
    if (!stopped) timer = setTimeout(poll, EVERY_MS);
  }

  const matches = (plan) => !filter.value || sourceOf(plan) === filter.value;

  // Shows the newest plan whose search was recorded, or the newest one.
  async function choose(isAsked) {
    const fitting = plans.filter(matches);
    const recent = fitting.slice(-40);
    const plan = recent.findLast((one) => one.traced) ?? recent.at(-1);
    if (!plan) {
      if (isAsked) panel.replaceChildren(empty("No plan of this robot is kept."));
      return;
    }
    if (plan.number !== shown) await show(plan.number);
  }

  async function show(wanted) {
    shown = wanted;
    try {
      const plan = await get(`plans/${wanted}`);
      if (stopped || shown !== wanted) return;
      view.show(plan);
      mark();
      const distances = plans
        .filter((one) => sourceOf(one) === sourceOf(plan) && one.distance && one.number <= wanted)
        .map((one) => one.distance.start);
      spark.replaceChildren();
      if (distances.length > 2) {
        spark.append(
          h(
            "span",
            { class: "muted" },
            `${sourceOf(plan)}, last ${distances.length} plans: `,
            h("b", {}, `${number(distances.at(-1))} steps`),
            " ",
            term("to go"),
            `, between ${number(Math.min(...distances))} and ${number(Math.max(...distances))}`,
          ),
          sparkline(distances, "Steps to go of the last plans"),
        );
      }
    } catch (error) {
      if (!stopped) say(error.message);
    }
  }

  function listRobots() {
    const names = [...new Set(plans.map(sourceOf))].sort();
    const known = [...filter.options].slice(1).map((option) => option.value);
    if (names.join("\n") === known.join("\n")) return;
    const chosen = filter.value;
    filter.replaceChildren(
      h("option", { value: "" }, "all robots"),
      ...names.map((name) => h("option", { value: name }, name)),
    );
    filter.value = names.includes(chosen) ? chosen : "";
  }

  function listPlans() {
    list.replaceChildren(
      ...plans.filter(matches).slice(-LISTED).reverse().map((plan) =>
        planRow(plan, {
          open: () => {
            setPaused(true);
            show(plan.number);
          },
        }),
      ),
    );
    mark();
  }

  function mark() {
    for (const row of list.rows) row.classList.toggle("chosen", Number(row.dataset.number) === shown);
  }

  poll();
  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
    onKey(event) {
      if (event.key === " ") setPaused(!isPaused);
      else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        if (!view.plan) return false;
        setPaused(true);
        return view.go(view.iteration + (event.key === "ArrowLeft" ? -1 : 1));
      } else if (event.key === "r" && shown) location.hash = `replay/${shown}`;
      else return false;
      return true;
    },
  };
}
