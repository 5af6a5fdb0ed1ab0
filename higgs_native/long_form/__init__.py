"""Long texts: chunks, and the speech that they are joined to."""
