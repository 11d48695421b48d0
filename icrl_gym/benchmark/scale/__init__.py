"""Time and memory as contexts grow, beside what the machine could do: the measurements of docs/performance.md."""
