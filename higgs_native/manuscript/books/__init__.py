"""Books: chapters and their text, from EPUB and Markdown files."""
