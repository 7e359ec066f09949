"""What people look at: report data, figures, tables, one self-contained HTML file."""

from npeff_jax.report._data import ReportData as ReportData
from npeff_jax.report._data import read_report_data as read_report_data
from npeff_jax.report._display import Images as Images
from npeff_jax.report._display import Texts as Texts
from npeff_jax.report._examples import Shown as Shown
from npeff_jax.report._figures import coefficient_figure as coefficient_figure
from npeff_jax.report._figures import collage_figure as collage_figure
from npeff_jax.report._figures import decay_figure as decay_figure
from npeff_jax.report._figures import energy_figure as energy_figure
from npeff_jax.report._figures import fidelity_figure as fidelity_figure
from npeff_jax.report._figures import loss_figure as loss_figure
from npeff_jax.report._figures import prediction_figure as prediction_figure
from npeff_jax.report._figures import selectivity_figure as selectivity_figure
from npeff_jax.report._figures import similarity_figure as similarity_figure
from npeff_jax.report._figures import split_figure as split_figure
from npeff_jax.report._picture import write_picture as write_picture
from npeff_jax.report._tables import latex_table as latex_table
from npeff_jax.report._tables import top_table as top_table
from npeff_jax.report._tables import write_coefficients as write_coefficients
from npeff_jax.report._tables import write_table as write_table
from npeff_jax.report._traces import trace_components as trace_components
from npeff_jax.report._write import report_data as report_data
from npeff_jax.report._write import write_html as write_html
from npeff_jax.report._write import write_report as write_report
