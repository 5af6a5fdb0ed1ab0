"""Long texts: cut into chunks, spoken in order or side by side, and joined."""
