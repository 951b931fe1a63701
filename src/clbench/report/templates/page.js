// A click on a heading sorts its table, and a second click reverses the order. Numbers (data-v) sort by value, empty cells last.
for (const table of document.querySelectorAll("table.sort")) {
  table.querySelectorAll("thead th").forEach((th, column) => {
    th.firstElementChild.addEventListener("click", () => {
      const first = th.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = th.getAttribute("aria-sort") === first ? other : first;
      table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    });
  });
}
