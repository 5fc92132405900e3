// What keys do. The page works without this file.
"use strict";
document.documentElement.classList.add("js");

const since = document.getElementById("since");
if (since) {
  const moments = document.querySelector(".moments");
  const show = () => { moments.hidden = since.value !== ""; };
  since.addEventListener("change", () => {
    show();
    if (since.value === "") moments.querySelector("input").focus();
    else for (const input of moments.querySelectorAll("input")) input.value = "";
  });
  show();
}
// An address without the empty words is shorter to share.
for (const form of document.querySelectorAll("form.filter")) {
  form.addEventListener("submit", () => {
    for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
  });
}
addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll("form.filter [disabled]")) field.disabled = false;
});

const rows = [...document.querySelectorAll("table.rows tbody tr")];
let here = -1;
function goTo(index) {
  if (!rows.length) return;
  if (rows[here]) rows[here].classList.remove("here");
  here = Math.max(0, Math.min(rows.length - 1, index));
  rows[here].classList.add("here");
  rows[here].tabIndex = -1;
  rows[here].focus({ preventScroll: true });
  rows[here].scrollIntoView({ block: "nearest" });
}

const help = document.getElementById("help");
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && inField) { event.target.blur(); return; }
  if (inField || (help && help.open)) return;
  const views = document.querySelectorAll("nav a");
  if (/^[1-9]$/.test(event.key) && views[event.key - 1]) views[event.key - 1].click();
  else if (event.key === "/") {
    const find = document.querySelector("input[type=search]");
    if (find) { event.preventDefault(); find.focus(); find.select(); }
  } else if (event.key === "?" && help) help.showModal();
  else if (event.key === "j") goTo(here + 1);
  else if (event.key === "k") goTo(here - 1);
  else if (event.key === "Enter" && rows[here] === event.target) {
    const link = rows[here].querySelector("td:last-child a") || rows[here].querySelector("a");
    if (link) link.click();
  }
});
