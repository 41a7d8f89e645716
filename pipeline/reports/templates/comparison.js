for (const head of document.querySelectorAll("th[data-column]")) {
  head.tabIndex = 0;
  const sort = () => {
    const body = head.closest("table").tBodies[0], column = Number(head.dataset.column);
    const up = head.getAttribute("aria-sort") !== "ascending";
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return (up ? 1 : -1) * (Number(x) - Number(y) || x.localeCompare(y, "en", { numeric: true }));
    });
    for (const other of head.closest("tr").cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}
for (const key of document.querySelectorAll('svg [id*="-key-"]')) {
  const [figure, number] = key.id.split(/-key-(?=\d+$)/);
  key.addEventListener("click", () => {
    const hidden = key.classList.toggle("off");
    for (const part of document.querySelectorAll(`[id^="${CSS.escape(figure)}-line-${number}-"]`))
      part.style.display = hidden ? "none" : "";
  });
}
