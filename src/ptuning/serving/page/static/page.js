"use strict";
// What HTML and htmx do not do: colours, copying, dropped files, keys, filters, and words for a lost server.

const root = document.documentElement;
root.classList.add("js");

// Colours: as the system, light, dark. Set before the first paint, so that nothing flashes.
const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };
function setTheme(name) {
  if (!(name in THEMES)) name = "auto";
  root.dataset.theme = name;
  const button = document.getElementById("theme");
  if (!button) return;
  button.querySelector("span").textContent = THEMES[name];
  button.setAttribute("aria-label", "Colours: " + name);
}
function storedTheme() {
  try { return localStorage.getItem("ptuning-theme"); } catch { return null; }
}
setTheme(storedTheme());
document.addEventListener("DOMContentLoaded", () => setTheme(storedTheme()));

function nextTheme() {
  const names = Object.keys(THEMES);
  const name = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
  setTheme(name);
  try { localStorage.setItem("ptuning-theme", name); } catch { /* private browsing */ }
}

async function copy(button) {
  const source = document.querySelector(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch { // no clipboard without https: select the text instead
    getSelection().selectAllChildren(source);
    button.textContent = "Selected";
  }
  say(button.textContent);
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

function say(words) {
  document.getElementById("said").textContent = words;
}

document.addEventListener("click", (event) => {
  const target = event.target;
  if (target.closest("#theme")) nextTheme();
  const button = target.closest("[data-copy]");
  if (button) copy(button);
});

// Another task was chosen: ask it what was asked before, and mark it in the list, also if that arrives later.
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.target.id === "work") {
    if (document.activeElement === document.body) event.target.focus({ preventScroll: true });
    const form = document.getElementById("ask-one");
    const texts = [...(form?.querySelectorAll(".field:not([hidden]) textarea") ?? [])];
    if (texts.length && texts.every((text) => text.value.trim())) form.requestSubmit();
  } else if (event.target.id !== "tasks") return;
  const task = new URLSearchParams(location.search).get("task");
  for (const link of document.querySelectorAll(".side a[href]")) {
    const own = new URL(link.href).searchParams.get("task");
    if (own === task && !link.classList.contains("more")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
});
document.addEventListener("DOMContentLoaded", () => {
  const link = document.querySelector("#tasks [aria-current]");
  if (link) link.closest("#tasks").scrollTop = link.offsetTop - link.closest("#tasks").offsetTop - 60;
});

document.addEventListener("keydown", (event) => {
  const at = document.activeElement;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && at.form) {
    event.preventDefault();
    at.form.requestSubmit();
  } else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    const search = document.getElementById("q");
    if (search) { event.preventDefault(); search.select(); }
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const links = [...document.querySelectorAll("#tasks li a")];
    const place = links.indexOf(at);
    if (place < 0 && at.id !== "q") return;
    const next = place + (event.key === "ArrowDown" ? 1 : -1);
    const to = next < 0 ? document.getElementById("q") : links[next];
    if (to) { event.preventDefault(); to.focus(); }
  }
});

document.addEventListener("input", (event) => {
  // Rows that are pasted replace a file that was chosen before.
  if (event.target.id === "rows") event.target.form.elements.file.value = "";
  // A table's rows with all the words.
  const table = event.target.dataset.filter && document.querySelector(event.target.dataset.filter);
  if (!table) return;
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});

// Files that are dropped on the form.
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    const form = document.querySelector("form.drop");
    if (!form || ![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    form.classList.toggle("over", name === "dragover");
    if (name !== "drop" || !event.dataTransfer.files.length) return;
    form.elements.file.files = event.dataTransfer.files;
    form.requestSubmit();
  });
}

// The file is here already, so it need not go to the server and back, which has a limit.
document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-download]");
  if (!form) return;
  event.preventDefault();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([form.elements.csv.value], { type: "text/csv;charset=utf-8" }));
  link.download = form.elements.name.value;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
});

// No answer, or one that is not for the page: a proxy's, or that of a limit.
function trouble(title, message) {
  const section = document.createElement("section");
  section.className = "trouble";
  section.setAttribute("role", "alert");
  for (const [tag, words] of [["h2", title], ["p", message]]) {
    section.appendChild(document.createElement(tag)).textContent = words;
  }
  const place = document.getElementById("result") ?? document.getElementById("work");
  place.replaceChildren(section);
}
document.addEventListener("htmx:sendError", () => trouble("The server cannot be reached", "Check that it runs, and try again."));
document.addEventListener("htmx:beforeSwap", (event) => {
  const request = event.detail.xhr;
  if ((request.getResponseHeader("Content-Type") ?? "").startsWith("text/html")) return;
  event.detail.shouldSwap = false;
  const large = request.status === 413;
  trouble(large ? "This is too much at once" : "This did not work",
    large ? "Send fewer rows, or use ptuning predict." : "The server answered with the status " + request.status + ".");
});
