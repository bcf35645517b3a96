"""Plots of lines as SVG."""

COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 280, 56, 150, 20, 44


def draw_lines(title, lines, x_label, y_label):
    """Returns a plot. `lines` are lists of points (x, y) by their names; a name stands at the end of its line."""
    points = [point for line in lines.values() for point in line]
    x_top = max(x for x, _ in points)
    y_top = max(y for _, y in points) * 1.15

    def x_of(value):
        return LEFT + value / x_top * (WIDTH - LEFT - RIGHT)

    def y_of(value):
        return HEIGHT - BOTTOM - value / y_top * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="11" role="img">',
        f"<title>{title}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT - 6}" y="12" text-anchor="end">{y_label}</text>',
        f'<text x="{x_of(x_top / 2):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x_label}</text>',
    ]
    for step in range(5):
        x, y = x_top * step / 4, y_top * step / 4
        parts.append(f'<path d="M{LEFT} {y_of(y):.1f}H{x_of(x_top):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y_of(y) + 4:.1f}" text-anchor="end">{y:.0f}</text>')
        parts.append(f'<text x="{x_of(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        x, y = line[-1]
        parts.append(f'<text x="{x_of(x) + 6:.1f}" y="{y_of(y) + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
