"use strict";
// Sorts the tables, switches curves on and off, and shows the values under the pointer. The page is complete without it.
document.documentElement.classList.add("scripted");

function cellNumber(cell) {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll("sup").forEach((mark) => mark.remove());
  const found = /-?\d+(\.\d+)?(e[+-]?\d+)?/.exec(copy.textContent.replace(/\u2212/g, "-").replace(/,(?=\d{3})/g, ""));
  return found ? Number(found[0]) : null;
}

function sortBy(table, heading) {
  const column = heading.cellIndex;
  const before = heading.getAttribute("aria-sort");
  // Names begin with the first letter, numbers with the largest.
  const ascending = before ? before !== "ascending" : column === 0;
  table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => row.cells.length > column && !row.classList.contains("block"));
    const keyed = rows.map((row) => ({ row, key: column === 0 ? row.cells[0].textContent : cellNumber(row.cells[column]) }));
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      const order = column === 0 ? a.key.localeCompare(b.key) : a.key - b.key;
      return ascending ? order : -order;
    });
    keyed.forEach(({ row }) => body.append(row));
  }
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.querySelectorAll("thead th")) {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sortBy(table, heading));
    heading.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        sortBy(table, heading);
      }
    });
  }
}

function tipLine(colour, text) {
  const line = document.createElement("div");
  const key = document.createElement("i");
  key.style.setProperty("--colour", colour);
  line.append(key, text);
  return line;
}

function shortNumber(value) {
  return String(Number(value.toPrecision(3))).replace("-", "\u2212");
}

for (const chart of document.querySelectorAll(".chart")) {
  const buttons = chart.querySelectorAll(".legend button");
  if (!buttons.length) continue;
  const mates = (number) => chart.querySelectorAll(`.series[data-series="${number}"]`);
  for (const button of buttons) {
    const number = button.dataset.series;
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      mates(number).forEach((group) => group.classList.toggle("off", !shown));
    });
    const highlight = (on) => () => {
      chart.classList.toggle("has-hot", on && button.getAttribute("aria-pressed") === "true");
      mates(number).forEach((group) => group.classList.toggle("hot", on));
    };
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]]) {
      button.addEventListener(event, highlight(on));
    }
  }
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  chart.append(tip);
  for (const picture of chart.querySelectorAll(":scope > svg")) {
    const curves = [...picture.querySelectorAll(".series")].map((group) => ({
      group,
      name: group.dataset.name,
      colour: group.style.getPropertyValue("--colour"),
      points: JSON.parse(group.dataset.points),
    }));
    const cursor = picture.querySelector(".cursor");
    const leave = () => {
      tip.hidden = true;
      cursor.style.opacity = 0;
    };
    picture.addEventListener("pointerleave", leave);
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      const scale = box.width / picture.viewBox.baseVal.width;
      const at = (event.clientX - box.left) / scale;
      const visible = curves.filter(({ group }) => !group.classList.contains("off"));
      const places = visible.flatMap(({ points }) => points.map(([place]) => place));
      if (!places.length) return leave();
      const nearest = places.reduce((best, place) => (Math.abs(place - at) < Math.abs(best - at) ? place : best));
      const lines = visible.flatMap(({ name, colour, points }) =>
        points.filter(([place]) => place === nearest).map(([, share, mean, low, high]) => ({ name, colour, share, mean, low, high })));
      lines.sort((a, b) => b.mean - a.mean);
      const heading = document.createElement("b");
      heading.textContent = `${shortNumber(lines[0].share)} %`;
      tip.replaceChildren(heading, ...lines.map(({ name, colour, mean, low, high }) =>
        tipLine(colour, `${name}: ${shortNumber(mean)}${low === null ? "" : ` [${shortNumber(low)}, ${shortNumber(high)}]`}`)));
      tip.hidden = false;
      const left = nearest * scale;
      tip.style.left = left < box.width / 2 ? `${left + 12}px` : "auto";
      tip.style.right = left < box.width / 2 ? "auto" : `${box.width - left + 12}px`;
      tip.style.top = "12px";
      cursor.setAttribute("d", cursor.getAttribute("d").replace(/^M[\d.]+/, `M${nearest}`));
      cursor.style.opacity = 1;
    });
  }
}
