// Draws the figures and makes the tables of a page from the data inside it. Text from the data goes
// into the page as text only (textContent), never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];
  const SHOWN = 50;
  const collator = new Intl.Collator("en", { numeric: true });

  const create = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const si = (value, unit, digits = 3) => {
    if (value === 0) return `0 ${unit}`;
    const size = Math.abs(value);
    const [factor, prefix] =
      PREFIXES.find(([factor]) => size >= factor * (1 - 0.5 * 10 ** -digits)) ?? PREFIXES.at(-1);
    const scaled = Number((value / factor).toPrecision(digits));
    const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(scaled)) + 1e-9));
    return `${scaled.toFixed(decimals)} ${prefix}${unit}`;
  };

  const duration = (seconds) => {
    if (seconds < 60) return seconds < 1 ? si(seconds, "s") : `${seconds.toFixed(1)} s`;
    const minutes = Math.round(seconds / 60);
    if (seconds < 3600) return `${Math.floor(Math.round(seconds) / 60)} min ${Math.round(seconds) % 60} s`;
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  };

  const FORMATS = {
    joules: (value) => si(value, "J"),
    watts: (value) => si(value, "W"),
    grams: (value) => si(value, "g"),
    percent: (value) => `${(100 * value).toFixed(2)} %`,
    relative: (value) => `± ${Number((100 * value).toPrecision(2))} %`,
    duration,
    count: (value) => value.toLocaleString("en"),
    number: (value) => String(Number(value.toPrecision(4))),
  };

  const show = (value, kind) => {
    if (value === null || value === undefined || value === "") return "";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value !== "number") return String(value);
    return (FORMATS[kind] ?? FORMATS.number)(value);
  };

  const isNumeric = (column) => column.kind in FORMATS;

  const cell = (value, column, page) => {
    const td = create("td", isNumeric(column) ? "number" : column.kind === "name" ? "name" : "");
    const text = show(value, column.kind);
    if (column.kind === "name" && page) {
      const link = create("a", "", text || "(no name)");
      link.href = page;
      td.append(link);
    } else if (column.kind === "provenance" && text) {
      td.append(create("span", `chip ${text}`, text));
    } else {
      td.textContent = text;
      if (column.kind === "wide") td.classList.add("wide");
      if (isNumeric(column) && typeof value === "number") td.title = String(value);
    }
    return td;
  };

  // A spreadsheet takes text that begins so for a formula.
  const csvCell = (value) => {
    if (value === null || value === undefined) return "";
    let text = String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  const download = (name, columns, rows) => {
    const lines = [columns.map((column) => csvCell(column.heading)).join(",")];
    for (const row of rows) lines.push(row.slice(0, columns.length).map(csvCell).join(","));
    const link = create("a");
    link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
    link.download = `${name}.csv`;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };

  const compare = (a, b) => {
    const missing = (value) => value === null || value === undefined || value === "";
    if (missing(a) || missing(b)) return missing(a) - missing(b) || 0;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return collator.compare(String(a), String(b));
  };

  // A table that sorts by a click on a heading, filters by words and by choices, and downloads what
  // it shows. A row is an array of the columns' values; the page it links to may come behind them.
  const makeTable = (place) => {
    const name = place.dataset.table;
    const { columns, rows, sort } = data.tables[name];
    const state = { sort: sort ?? null, down: false, words: "", choices: {}, start: 0, shown: SHOWN };
    const key = `jaxenergy ${name} ${location.pathname}`;
    try {
      Object.assign(state, JSON.parse(sessionStorage.getItem(key) ?? "{}"));
    } catch {
      // No storage, or not ours: the table begins as it is.
    }
    const texts = rows.map((row) => row.slice(0, columns.length).join("\n").toLowerCase());
    const position = (wanted) => columns.findIndex((column) => column.key === wanted);

    const controls = create("div", "controls");
    const addControl = (label, input) => {
      const holder = create("label", "", label);
      holder.append(input);
      controls.append(holder);
    };
    const search = create("input");
    search.type = "search";
    search.placeholder = "all of these words";
    search.value = state.words;
    search.addEventListener("input", () => update({ words: search.value, start: 0 }));
    addControl("Filter", search);
    columns.forEach((column, at) => {
      if (!column.choose) return;
      const values = [...new Set(rows.map((row) => row[at]).filter((value) => value !== null && value !== ""))];
      if (values.length < 2 || values.length > 60) return;
      const select = create("select");
      select.append(new Option("all", ""));
      for (const value of values.sort(compare)) select.append(new Option(String(value), String(value)));
      select.value = state.choices[column.key] ?? "";
      select.addEventListener("change", () =>
        update({ choices: { ...state.choices, [column.key]: select.value }, start: 0 }));
      addControl(column.heading, select);
    });
    const csv = create("button", "csv", "Download CSV");
    csv.type = "button";
    csv.addEventListener("click", () => download(name, columns, chosen()));
    controls.append(csv);

    const table = create("table", "runs");
    const head = table.createTHead().insertRow();
    columns.forEach((column) => {
      const th = create("th", isNumeric(column) ? "number" : "");
      const button = create("button", "", column.heading);
      button.type = "button";
      if (column.help) button.title = column.help;
      button.addEventListener("click", () =>
        update({ sort: column.key, down: state.sort === column.key && !state.down, start: 0 }));
      th.append(button);
      head.append(th);
    });
    const body = table.createTBody();
    const scroll = create("div", "scroll");
    scroll.tabIndex = 0;
    scroll.append(table);

    const pages = create("div", "pages");
    const back = create("button", "", "Back");
    const next = create("button", "", "Next");
    const all = create("button", "", "Show all");
    const count = create("span", "faint");
    for (const button of [back, next, all]) button.type = "button";
    back.addEventListener("click", () => update({ start: Math.max(0, state.start - state.shown) }));
    next.addEventListener("click", () => update({ start: state.start + state.shown }));
    all.addEventListener("click", () => update({ start: 0, shown: rows.length }));
    pages.append(count, back, next, all);

    const chosen = () => {
      const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
      const choices = Object.entries(state.choices)
        .filter(([wanted, value]) => value !== "" && position(wanted) >= 0)
        .map(([wanted, value]) => [position(wanted), value]);
      const kept = rows.filter((row, at) =>
        words.every((word) => texts[at].includes(word)) &&
        choices.every(([column, value]) => String(row[column]) === value));
      const by = position(state.sort);
      if (by < 0) return kept;
      const empty = (row) => row[by] === null || row[by] === undefined || row[by] === "";
      return kept.sort((a, b) =>
        empty(a) || empty(b) ? empty(a) - empty(b) : (state.down ? -1 : 1) * compare(a[by], b[by]));
    };

    const update = (change) => {
      Object.assign(state, change);
      try {
        sessionStorage.setItem(key, JSON.stringify(state));
      } catch {
        // It is kept for reloading only.
      }
      const kept = chosen();
      if (state.start >= kept.length) state.start = 0;
      const shown = kept.slice(state.start, state.start + state.shown);
      body.replaceChildren(...shown.map((row) => {
        const tr = create("tr");
        columns.forEach((column, at) => tr.append(cell(row[at], column, row[columns.length])));
        return tr;
      }));
      [...head.cells].forEach((th, at) => {
        if (columns[at].key === state.sort) th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else th.removeAttribute("aria-sort");
      });
      const last = state.start + shown.length;
      count.textContent = shown.length
        ? `${state.start + 1} to ${last} of ${kept.length.toLocaleString("en")}` +
          (kept.length < rows.length ? ` (${rows.length.toLocaleString("en")} in all)` : "")
        : "Nothing fits the filter.";
      const whole = kept.length <= state.shown;
      for (const button of [back, next, all]) button.hidden = whole;
      back.disabled = state.start === 0;
      next.disabled = last >= kept.length;
    };

    place.replaceChildren(controls, scroll, pages);
    update({});
  };

  // The data beside a figure is put into the page when it is asked for.
  const fillDetails = (details, figure) => {
    const place = details.querySelector(".data");
    details.querySelector("button.csv")?.addEventListener("click", () =>
      download(details.dataset.figure, figure.columns, figure.rows));
    details.addEventListener("toggle", () => {
      if (!details.open || place.childElementCount) return;
      const table = create("table");
      const head = table.createTHead().insertRow();
      for (const column of figure.columns) head.append(create("th", isNumeric(column) ? "number" : "", column.heading));
      const body = table.createTBody();
      for (const row of figure.rows.slice(0, 200)) {
        const tr = body.insertRow();
        figure.columns.forEach((column, at) => tr.append(cell(row[at], column)));
      }
      const scroll = create("div", "scroll tall");
      scroll.append(table);
      place.append(scroll);
      if (figure.rows.length > 200)
        place.append(create("p", "faint", `The first 200 of ${figure.rows.length.toLocaleString("en")} rows; all are in the CSV.`));
    });
  };

  const draw = async () => {
    for (const place of document.querySelectorAll(".plot[data-figure]")) {
      const figure = data.figures[place.dataset.figure];
      const values = figure.values.map((row) =>
        Object.fromEntries(figure.keys.map((key, at) => [key, row[at]]).filter(([, value]) => value !== null)));
      const spec = { ...figure.spec, width: "container", autosize: { type: "fit-x", contains: "padding" }, data: { name: "rows", values } };
      await vegaEmbed(place, spec, {
        renderer: "svg",
        actions: false,
        config: data.config,
        tooltip: { disableDefaultStyle: true },
      });
      place.dataset.drawn = "yes";
    }
    document.documentElement.dataset.drawn = "yes";
  };

  for (const figure of Object.values(data.figures)) {
    const at = figure.columns.map((column) => figure.keys.indexOf(column.key));
    const [key, value] = figure.only ?? [null, null];
    figure.rows = figure.values
      .filter((row) => key === null || row[figure.keys.indexOf(key)] === value)
      .map((row) => at.map((place) => row[place]));
  }
  for (const place of document.querySelectorAll("[data-table]")) makeTable(place);
  for (const details of document.querySelectorAll("details[data-figure]"))
    fillDetails(details, data.figures[details.dataset.figure]);
  // While a sweep runs the page is made again and again; what was chosen in its tables stays.
  if (data.reload_s) setTimeout(() => location.reload(), 1000 * data.reload_s);
  draw();
})();
