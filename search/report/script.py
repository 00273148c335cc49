"""The page's own script: unpacks Plotly's, draws charts when they come near the window, sorts and
filters tables, switches curves, follows light and dark. It asks for nothing from outside."""

SCRIPT = """
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const hidden = new Set();  // keys of curves that are switched off
  const still = { displayModeBar: false, responsive: true };

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const found = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12,
              color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"),
                    font: { color: colour("--ink") } } };
    // A finger that scrolls the page must not zoom a chart.
    if (matchMedia("(pointer: coarse)").matches) found.dragmode = false;
    for (const name of ["xaxis", "yaxis"]) {
      found[name] = { ...(layout[name] || {}), gridcolor: colour("--line"),
                      linecolor: colour("--line"), tickcolor: colour("--line") };
    }
    return found;
  }

  function draw(plot) {
    const figure = plot.closest("figure");
    const held = JSON.parse(figure.querySelector("script").textContent);
    for (const trace of held.data) {
      if (trace.meta && hidden.has(trace.meta.key)) trace.visible = false;
    }
    plot.dataset.drawn = "yes";
    watch.unobserve(plot);
    return Plotly.newPlot(plot, held.data, themed(held.layout), still);
  }

  const drawn = () => all(".plot[data-drawn]");
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "400px" });

  async function unpack() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent),
      (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);  // runs at once
    all(".plot").forEach((plot) => watch.observe(plot));
  }
  unpack().catch(() => { document.getElementById("too-old").hidden = false; });

  function recolour() {
    for (const plot of drawn()) Plotly.react(plot, plot.data, themed(plot.layout), still);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);

  let closed = [];
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("light");
    closed = all("details:not([open])");
    closed.forEach((part) => { part.open = true; });
    if (window.Plotly) all(".plot:not([data-drawn])").forEach(draw);
    recolour();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("light");
    closed.forEach((part) => { part.open = false; });
    recolour();
  });

  function value(row, column) {
    const cell = row.cells[column];
    const held = cell.dataset.value;
    if (held === "") return null;  // not known
    return held === undefined ? cell.textContent.toLowerCase() : Number(held);
  }

  function sort(head) {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const rows = [...body.rows];
    const number = rows.some((row) => typeof value(row, column) === "number");
    // Scores are looked at from the top, names from the start; a second click turns it round.
    const before = head.getAttribute("aria-sort");
    const first = number ? "descending" : "ascending";
    const second = number ? "ascending" : "descending";
    const order = before === first ? second : first;
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((one, other) => {
      const a = value(one, column), b = value(other, column);
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (number ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    });
    all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    body.append(...rows);
  }
  all("th button").forEach((button) => {
    button.addEventListener("click", () => sort(button.closest("th")));
  });

  all("input.filter").forEach((box) => {
    const body = document.getElementById(box.dataset.for).querySelector("tbody");
    box.addEventListener("input", () => {
      const wanted = box.value.trim().toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  });

  all("input[data-key]").forEach((box) => box.addEventListener("change", () => {
    const key = box.dataset.key;
    if (box.checked) hidden.delete(key); else hidden.add(key);
    for (const plot of drawn()) {
      const found = plot.data.flatMap((t, i) => (t.meta && t.meta.key === key ? [i] : []));
      if (found.length) Plotly.restyle(plot, { visible: box.checked }, found);
    }
  }));

  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const here = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      const link = links.get(entry.target.id);
      link.setAttribute("aria-current", "true");
      const list = link.closest("ul");
      list.scrollLeft = link.offsetLeft - list.clientWidth / 2 + link.offsetWidth / 2;
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  all("section").forEach((part) => here.observe(part));
})();
"""
