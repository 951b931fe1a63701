// Sort a table in .sortable by a click, or Enter, on a heading: numbers by value, other cells as text, empty cells last.
const number = /^[+\-−]?\d[\d,]*\.?\d*(e[+\-]?\d+)?/i;
const sizes = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9 };

function value(text) {
  const found = text.match(number);
  if (!found) return text.toLowerCase();
  const unit = text.slice(found[0].length).trim();
  return parseFloat(found[0].replaceAll(",", "").replace("−", "-")) * (sizes[unit] ?? 1);
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const text = (row) => row.cells[column].textContent.trim();
  const compare = (a, b) => {
    if (!text(a) || !text(b)) return !text(a) - !text(b);
    const [x, y] = [value(text(a)), value(text(b))];
    const order = typeof x === "number" && typeof y === "number" ? x - y : `${x}`.localeCompare(`${y}`);
    return descending ? -order : order;
  };
  body.append(...[...body.rows].sort(compare));
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".sortable table")) {
    const headings = [...table.tHead.rows[0].cells];
    for (const [column, heading] of headings.entries()) {
      heading.tabIndex = 0;
      const click = () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((each) => each.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      };
      heading.addEventListener("click", click);
      heading.addEventListener("keydown", (event) => event.key === "Enter" && click());
    }
  }
});
