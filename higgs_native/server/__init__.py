"""The speech server, with the interface of OpenAI's speech API. Needs the extra `serve`; see docs/serving.md."""
