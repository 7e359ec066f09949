"""What people look at: report data, figures, one self-contained HTML file."""

from npeff_jax.report._data import ReportData as ReportData
from npeff_jax.report._data import read_report_data as read_report_data
from npeff_jax.report._display import Images as Images
from npeff_jax.report._display import Texts as Texts
from npeff_jax.report._examples import Shown as Shown
from npeff_jax.report._write import report_data as report_data
from npeff_jax.report._write import write_html as write_html
from npeff_jax.report._write import write_report as write_report
