"""What people look at: report data, figures, one self-contained HTML file."""
