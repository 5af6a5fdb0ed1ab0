"""The interfaces of the two public implementations, over the native engine: change an import, and keep your code."""
