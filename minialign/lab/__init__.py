"""What runs the book: commands, claims, exercises, the report, pages, real data, real weights, other people's file
formats."""
