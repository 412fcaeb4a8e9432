// Words that not everybody knows. Each is explained where it stands.

import { h } from "./dom.js";

const MEANINGS = {
  anomalous: "The frames do not look like those that the model was trained on, or the robot did not move as the model had predicted. A plan from such frames may be wrong.",
  "answered after": "The time from the robot's question to its answer, the latency of the network included.",
  backend: "The program that computes the model, and the device that it runs on.",
  candidates: "Sequences of actions that the search tries. The model imagines where each of them leads, and the cost says how good that is. Up to 32 of each iteration are drawn.",
  component: "A component is a direction in which the latents of this plan differ most. It has no unit. A model with a probe is drawn by states instead, such as x and y.",
  cost: "What the search makes as small as possible: how far the imagined way stays from the goal, in the unit of the objective. Costs of different objectives cannot be compared.",
  decode: "Reading the images, and looking up whether their latents are known already.",
  elites: "The best candidates of an iteration. The next iteration searches around them. A solver without elites has one here: its best candidate.",
  encode: "Computing the latents of the frames: what the model sees in them.",
  fallback: "A simple controller that answers in place of the plan, if the frames are anomalous or the time is too short. After its name stands the reason.",
  "final mean": "The mean of CEM's last elites. It is scored once, after all iterations. The plan is the best of everything that was scored.",
  horizon: "How many action blocks a plan is long. An action block is several actions in a row, after which the robot sends the next frame.",
  iteration: "One round of the search: it tries some candidates, and learns from the best of them where to search next.",
  latent: "What the model makes of a frame: a list of numbers in which it imagines and plans.",
  "latent norm": "The length of the latent, in standard deviations from the mean of the frames that the model was trained on.",
  "Mahalanobis distance": "How far the latent is from those of the frames that the model was trained on, measured by how widely these are spread.",
  objective: "What the cost measures: latent is the distance of latents from the goal's, distance is a learned number of steps to the goal, and state is the error of the states that a probe reads.",
  p50: "Half of the requests were answered within this time: the median.",
  p95: "95 of 100 requests were answered within this time.",
  protocol: "How the robot talks to the server: rest, grpc, openpi or oip (the Open Inference Protocol).",
  queue: "Waiting until the engine took the request.",
  recorded: "The server records the search of two plans a second: its candidates and their costs. The search of another plan is seen by planning again in Replay, which gives the same plan and records it.",
  samples: "How many candidates an iteration tries. iCEM tries fewer in later iterations.",
  seed: "The number that the random candidates come from. The same request with the same seed gives the same plan.",
  SIGReg: "How far the latents of the last frames, of all robots, are from the bell curve that the model was trained to give them. It says nothing about this robot alone.",
  solve: "The search for the plan.",
  solver: "The method of the search: cem and icem fit a bell curve to the elites, mppi weighs all candidates by their costs, random keeps the best one, gradient follows the slope of the cost.",
  surprise: "How far the newest frame is from what the model had predicted for it, from the frame before and the actions between them.",
  "the rest": "Reading the request, checking it, and writing the answer.",
  "to go": "How many steps (actions of the robot) the model believes the goal is away, by its learned distance. This is an estimate, and far too large for anomalous frames. A dash: a fallback answered, or the model has learned no distance.",
};

// A word whose meaning is shown beside it by a click, a touch, or the Return key.
export function term(word, text = word) {
  const meaning = MEANINGS[word];
  return h(
    "dfn",
    {},
    h("button", { type: "button", class: "term", title: meaning, onclick: (event) => explain(event.currentTarget, meaning) }, text),
  );
}

// Several of them, for a line below what they explain.
export function terms(...words) {
  return h("p", { class: "muted terms" }, words.map((word) => term(word)));
}

const MARKS = { recorded: "◉", fallback: "↩", anomalous: "✕" };

// What the marks of a table of plans stand for.
export function legendOf(...words) {
  return h("p", { class: "muted terms" }, words.map((word) => h("span", {}, `${MARKS[word]} `, term(word))));
}

// One note for all words. It stays when the page behind it is drawn again.
function explain(button, meaning) {
  const note = document.getElementById("meaning");
  note.textContent = meaning;
  note.showPopover();
  const place = button.getBoundingClientRect();
  const fitsBelow = place.bottom + note.offsetHeight + 8 < window.innerHeight;
  note.style.left = `${Math.max(8, Math.min(place.left, window.innerWidth - note.offsetWidth - 8))}px`;
  note.style.top = `${Math.max(8, fitsBelow ? place.bottom + 4 : place.top - note.offsetHeight - 4)}px`;
}
