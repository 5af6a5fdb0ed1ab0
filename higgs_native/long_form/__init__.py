"""Long texts: cut into chunks, spoken one by one, and joined."""
