// Drive: a simulated robot, its goal, and what can go wrong on its way.

import { get, post } from "./api.js";
import { empty, h, healthBadge, milliseconds, number, statusBadge } from "./dom.js";
import { legendOf, term } from "./words.js";

const EVERY_MS = 150;
const IDLE_MS = 1000;
const FALLBACKS = {
  hold: "hold: the neutral action",
  tail: "tail: the rest of the last plan",
  none: "none: an error instead",
};

export function drive(main, { server, say }) {
  let timer = null;
  let stopped = false;
  let shown = null;
  let goalsOf = null;
  let about = null;
  let plans = [];

  const robots = Object.entries(server.drivers);
  const idle = robots.filter(([, models]) => !models.length).map(([name]) => name);
  const environment = h("select", { id: "environment", onchange: listModels },
    robots.map(([name, models]) => h("option", { value: name, disabled: !models.length }, name)));
  environment.value = robots.find(([, models]) => models.length)?.[0] ?? "";
  const model = h("select", { id: "model" });
  const start = h("button", { type: "submit", class: "primary", disabled: idle.length === robots.length }, "Start");
  const problem = h("p", { class: "problem", role: "alert" });
  const form = h(
    "form",
    {
      class: "toolbar",
      onsubmit(event) {
        event.preventDefault();
        begin();
      },
    },
    h("label", { for: "environment" }, "Robot "),
    environment,
    h("label", { for: "model" }, "planned by "),
    model,
    start,
    idle.length
      ? h("p", { class: "muted" }, `No served model was made for ${idle.join(", ")}. `, h("code", {}, "lewm serve --models NAME"), " serves another model.")
      : null,
  );
  const picture = h("img", { class: "world", alt: "What the robot's camera shows", width: 448, height: 448 });
  const ghost = h("img", { class: "ghost", alt: "", hidden: true });
  const world = h("button", { type: "button", class: "world-button", onclick: point }, picture, ghost);
  const hint = h("p", { class: "muted" });
  const goalPicture = h("figure", { class: "goal-picture", hidden: true });
  const goals = h("div", { class: "goals" });
  const controls = h("div", { class: "settings" });
  const state = h("div", { role: "status", "aria-live": "polite" });
  const log = h("tbody");
  const panel = h(
    "article",
    { class: "card drive", hidden: true },
    h("div", { class: "columns" },
      h("section", {}, world, hint),
      h("section", {},
        h("h3", {}, "Goal"), goalPicture, goals,
        h("h3", {}, "What goes wrong"), controls,
        h("h3", {}, "The robot"), state),
      h("section", {},
        h("h3", {}, "Last plans"),
        h("table", { class: "plans" },
          h("thead", {}, h("tr", {}, ["status", "health", term("answered after"), term("to go")].map((name) => h("th", {}, name)))), log),
        legendOf("fallback", "anomalous"))),
  );
  const intro = empty("Choose a simulated robot and start it. Then choose a goal: the robot plans from its camera's pictures alone, and goes there.");
  main.replaceChildren(server.may_plan ? form : empty("Driving needs a key with the role infer. You can watch a robot that somebody else drives."), problem, intro, panel);

  async function poll() {
    let wait = IDLE_MS;
    if (!document.hidden) {
      try {
        const answer = await get("drive");
        if (stopped) return;
        say(null);
        await show(answer);
        if (answer.drive && !answer.drive.ended) wait = EVERY_MS;
      } catch (error) {
        if (!stopped) say(error.message);
      }
    }
    if (!stopped) timer = setTimeout(poll, wait);
  }

  function listModels() {
    model.replaceChildren(...(server.drivers[environment.value] ?? []).map((name) => h("option", { value: name }, name)));
  }

  async function show({ drive: robot }) {
    panel.hidden = !robot;
    intro.hidden = robot !== null;
    if (!robot) return;
    if (goalsOf !== robot.number) {
      about = await get("drive/goals");
      goalsOf = robot.number;
      plans = [];
      showGoals();
      showControls(robot);
    }
    shown = robot;
    picture.src = robot.frame;
    goalPicture.hidden = !robot.goal;
    ghost.hidden = !robot.goal || robot.reached || robot.controls.fault !== "";
    if (robot.goal) {
      ghost.src = robot.goal;
      goalPicture.replaceChildren(h("img", { src: robot.goal, alt: "the goal", width: 112, height: 112 }), h("figcaption", {}, "the goal"));
    }
    const isOver = !server.may_plan || robot.ended !== null;
    world.disabled = isOver || !about.takes_points;
    hint.textContent = robot.ended !== null ? "This drive has ended. Press Start for a new one." : howToChoose();
    for (const control of panel.querySelectorAll(".goals button, .settings :is(button, input, select)")) control.disabled = isOver;
    describe(robot);
    remember(robot.plan);
  }

  function howToChoose() {
    return about.takes_points
      ? "Click where the robot should go, or choose a picture."
      : "Choose a picture: the robot starts where it can reach it.";
  }

  function showGoals() {
    goals.replaceChildren(
      ...about.goals.map((url, task) =>
        h("button", { type: "button", title: `goal ${task + 1}`, onclick: () => change({ task }) },
          h("img", { src: url, alt: `goal ${task + 1}`, width: 64, height: 64 })),
      ),
    );
  }

  function showControls(robot) {
    const fault = h("select", { id: "fault", onchange: () => change({ fault: fault.value }) },
      h("option", { value: "" }, "none"), about.faults.map((name) => h("option", { value: name }, name)));
    fault.value = robot.controls.fault;
    const delay = h("input", { id: "delay", type: "checkbox", onchange: () => change({ is_delayed: delay.checked }) });
    delay.checked = robot.controls.is_delayed;
    const fallback = h("select", { id: "fallback", onchange: () => change({ fallback: fallback.value }) },
      Object.entries(FALLBACKS).map(([name, text]) => h("option", { value: name }, text)));
    fallback.value = robot.controls.fallback;
    const stopping = h("button", { type: "button", id: "stop", onclick: () => change({ is_stopped: !shown.controls.is_stopped }) }, "Stop the robot");
    const end = h("button", { type: "button", onclick: () => change({ end: true }) }, "End the drive");
    controls.replaceChildren(
      h("label", {}, h("span", {}, "fault of the camera"), fault),
      h("label", { class: "check" }, delay, h("span", {}, `${robot.delay_ms} ms of latency`)),
      h("label", {}, h("span", {}, "fallback"), fallback),
      stopping,
      end,
    );
  }

  function describe(robot) {
    const { plan } = robot;
    const stopping = document.getElementById("stop");
    if (stopping) stopping.textContent = robot.controls.is_stopped ? "Let it go on" : "Stop the robot";
    const what = sentence(robot);
    const isThere = robot.reached && robot.ended === null;
    state.replaceChildren(
      h("p", { class: isThere ? "reached" : "" }, isThere ? "✓ " : "", what),
      plan ? h("p", { class: "badges" }, statusBadge(plan), " ", healthBadge(plan.health)) : "",
      plan ? h("p", { class: "muted" }, `last answer after ${milliseconds(plan.waited_ms)}; the deadline is at ${robot.deadline_ms} ms`) : "",
      robot.fallbacks ? h("p", {}, `${robot.fallbacks} plans were answered by the fallback.`) : "",
      plan?.reasons.length ? h("ul", { class: "reasons" }, plan.reasons.map((reason) => h("li", {}, reason))) : "",
      robot.problem ? h("p", { class: "problem" }, robot.problem) : "",
    );
  }

  function remember(plan) {
    if (!plan || plans.at(-1)?.request_id === plan.request_id) return;
    plans = [...plans, plan].slice(-12);
    log.replaceChildren(
      ...[...plans].reverse().map((one) =>
        h("tr", { onclick: () => { location.hash = `#replay/${one.request_id}`; } },
          h("td", {}, h("a", { href: `#replay/${one.request_id}` }, statusBadge(one, true))),
          h("td", {}, healthBadge(one.health)),
          h("td", { class: "number" }, milliseconds(one.waited_ms)),
          h("td", { class: "number" }, one.distance ? number(one.distance.start) : "–"))),
    );
  }

  async function begin() {
    start.disabled = true;
    start.textContent = "Starting …";
    problem.textContent = "";
    try {
      await post("drive", { environment: environment.value, model: model.value });
    } catch (error) {
      problem.textContent = error.message;
    } finally {
      start.disabled = false;
      start.textContent = "Start";
    }
  }

  async function change(wanted) {
    problem.textContent = "";
    try {
      await post("drive/controls", wanted);
    } catch (error) {
      problem.textContent = error.message;
    }
  }

  function point(event) {
    // A press of the Return key has no place.
    if (!event.detail) return;
    const box = picture.getBoundingClientRect();
    change({
      x: Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)),
      y: Math.min(1, Math.max(0, (event.clientY - box.top) / box.height)),
    });
  }

  listModels();
  poll();
  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
    onKey(event) {
      if (event.key !== " " || !shown || shown.ended || !server.may_plan) return false;
      change({ is_stopped: !shown.controls.is_stopped });
      return true;
    },
  };
}

function sentence(robot) {
  if (robot.ended) return `Ended: ${robot.ended}.`;
  if (robot.reached) return `Goal reached after ${robot.steps} actions. Choose another one.`;
  if (robot.gave_up) return `Not reached within ${robot.steps} actions. Choose another goal.`;
  if (!robot.goal) return "The robot waits for a goal.";
  return robot.controls.is_stopped ? "Stopped." : `On its way: ${robot.steps} actions so far.`;
}
