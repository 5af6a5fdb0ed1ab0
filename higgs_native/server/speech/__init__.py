"""From a request to encoded speech, for all protocols (HTTP, WebSocket, Wyoming)."""
