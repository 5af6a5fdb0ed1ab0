"""Generation: requests in, codes and text out."""
