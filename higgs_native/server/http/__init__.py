"""The HTTP interface: routes, the gate before them, responses, WebSockets and the page."""
