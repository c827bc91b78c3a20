"use strict";

const asked = JSON.parse(document.getElementById("asked").textContent);
const KEYS = { y: "yes", n: "no", u: "unsure" };
const WORDS = { yes: "yes", no: "no", unsure: "cannot tell" };
const FEW_PIXELS = 128;
const part = (id) => document.getElementById(id);
let annotator = "", answers = {}, at = 0;

const place = () => `vit_lens.annotate.${asked.page}.${annotator}`;
const nAnswered = () => Object.keys(answers).length;

function trouble(words) {
  part("trouble").textContent = words;
  part("trouble").hidden = false;
}

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(place()) || "{}");
    for (const [task, answer] of Object.entries(kept)) {
      if (asked.tasks[task] && Object.hasOwn(WORDS, answer)) answers[task] = answer;
    }
  } catch {
    trouble("Earlier answers in this browser, if there are any, cannot be read.");
  }
}

function keep() {
  try {
    localStorage.setItem(place(), JSON.stringify(answers));
  } catch {
    trouble("This browser keeps nothing: download your answers before you close the page.");
  }
}

function screen(name) {
  for (const each of ["start", "asking", "done"]) part(each).hidden = each !== name;
}

function show() {
  if (at >= asked.tasks.length) return finish();
  screen("asking");
  const [item, , text] = asked.tasks[at];
  part("picture").src = asked.pictures[item];
  part("question").textContent = text;
  part("progress").value = nAnswered();
  part("count").textContent = `${at + 1} of ${asked.tasks.length}`;
  for (const button of document.querySelectorAll("[data-answer]")) {
    button.setAttribute("aria-pressed", String(answers[at] === button.dataset.answer));
  }
  part("back").disabled = at === 0;
  part("forward").disabled = !(at in answers);
}

function finish() {
  const missing = asked.tasks.findIndex((_, task) => !(task in answers));
  if (missing >= 0) {
    at = missing;
    return show();
  }
  const sums = Object.entries(WORDS).map(([answer, words]) =>
    `${Object.values(answers).filter((each) => each === answer).length} ${words}`);
  part("sums").textContent = `${sums.join(", ")}. Download the answers, and hand the file to whoever gave you this page.`;
  screen("done");
}

function give(answer) {
  answers[at] = answer;
  keep();
  at += 1;
  part("said").textContent = `Answered: ${WORDS[answer]}`;
  show();
}

function move(step) {
  if (at + step < 0 || (step > 0 && !(at in answers))) return;
  at = Math.min(asked.tasks.length, at + step);
  part("said").textContent = "";
  show();
}

function cell(text) {
  const plain = /^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text; // no spreadsheet finds a formula
  return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}

function save() {
  const lines = [["annotator", "item", "question", "answer", "page"]];
  asked.tasks.forEach(([item, question], task) => {
    if (task in answers) lines.push([annotator, asked.items[item], question, answers[task], asked.page]);
  });
  const text = lines.map((line) => `${line.map(cell).join(",")}\n`).join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `answers-${annotator.replace(/[^\p{L}\p{N}_-]+/gu, "_")}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

part("who").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = part("name").value.trim();
  if (!annotator) return;
  load();
  part("person").textContent = annotator;
  at = asked.tasks.findIndex((_, task) => !(task in answers));
  if (at < 0) at = asked.tasks.length;
  if (nAnswered()) part("said").textContent = `Welcome back: ${nAnswered()} answered`;
  show();
});
part("picture").addEventListener("load", ({ target }) => {
  target.classList.toggle("few-pixels", Math.max(target.naturalWidth, target.naturalHeight) <= FEW_PIXELS);
});
for (const button of document.querySelectorAll("[data-answer]")) {
  button.addEventListener("click", () => give(button.dataset.answer));
}
for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);
part("back").addEventListener("click", () => move(-1));
part("again").addEventListener("click", () => move(-1));
part("forward").addEventListener("click", () => move(1));
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !part("start").hidden) return;
  if (event.key === "ArrowLeft" || event.key === "Backspace") move(-1);
  else if (part("asking").hidden) return;
  else if (event.key === "ArrowRight") move(1);
  else if (Object.hasOwn(KEYS, event.key.toLowerCase())) give(KEYS[event.key.toLowerCase()]);
  else return;
  event.preventDefault();
});
