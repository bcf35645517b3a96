"""What the tests of the report and of the live page share."""
import json

from axe_core_python.sync_playwright import Axe

COLUMNS = ["task", "requests", "errors", "rate", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"]


def selection(page):
    """The table of the selected span, one dictionary for each task."""
    rows = page.eval_on_selector_all(
        "#selection tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return {row[0]: dict(zip(COLUMNS, row)) for row in rows}


def wait_until(page, condition):
    """Waits up to 10 s for a condition. Playwright's own function for this needs a page that allows
    `eval`, and the report does not."""
    page.evaluate(
        f"""async () => {{
            const end = performance.now() + 10000;
            while (!({condition})) {{
                if (performance.now() > end) throw new Error("not within 10 s: " + {json.dumps(condition)});
                await new Promise(requestAnimationFrame);
            }}
        }}"""
    )


def watch_problems(page, problems, is_allowed):
    """Collects errors of the page, and requests to addresses that are not allowed."""
    page.on("console", lambda message: problems.append(f"console: {message.text}") if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))

    def check_request(request):
        if not is_allowed(request.url) and not request.url.startswith("data:"):
            problems.append(f"request: {request.url[:100]}")

    page.on("request", check_request)


def check_layout(page):
    """Checks narrow and wide, light and dark: nothing is cut off, and axe finds nothing serious."""
    for width in [360, 1440]:
        for scheme in ["light", "dark"]:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            wait_until(page, "document.querySelector('#rates canvas').clientWidth <= document.body.clientWidth")
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow <= 0, f"{width} px: {overflow} px too wide"
            found = Axe().run(page)["violations"]
            serious = [
                f"{rule['id']}: {[node['html'] for node in rule['nodes']][:3]}"
                for rule in found
                if rule["impact"] in ("serious", "critical")
            ]
            assert not serious, f"{width} px, {scheme}: {serious}"
    page.set_viewport_size({"width": 1440, "height": 900})
    page.emulate_media(color_scheme="light")
