"""The HTTP interface: routes, the gate in front of them, responses, WebSockets and the page."""
