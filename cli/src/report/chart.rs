//! SVG line charts.

use plotters::prelude::{
    ChartBuilder, Color, DashedLineSeries, IntoDrawingArea, LineSeries, Polygon, RGBColor, SVGBackend,
    ShapeStyle,
};
use unirl::error::{Error, Result};

/// The colours of the runs: the colour-blind-safe palette of Okabe and Ito.
pub(super) const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// A curve with its confidence interval.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Curve {
    /// Index into [`COLORS`].
    pub(super) color: usize,
    pub(super) dashed: bool,
    /// Step and value.
    pub(super) points: Vec<(f64, f64)>,
    /// Step, lower and upper bound.
    pub(super) interval: Vec<(f64, f64, f64)>,
}

impl Curve {
    /// The running mean of one value per step with its 95 % interval (1.96 standard errors). The window is a twentieth of the
    /// values, at least five.
    pub(super) fn smoothed(color: usize, values: &[(f64, f64)]) -> Self {
        let width = (values.len() / 20).max(5);
        let mut curve = Self { color, ..Self::default() };
        for (index, (step, _)) in values.iter().enumerate() {
            let window = &values[(index + 1).saturating_sub(width)..=index];
            let count = window.len() as f64;
            let mean = window.iter().map(|(_, value)| value).sum::<f64>() / count;
            let variance = window.iter().map(|(_, value)| (value - mean).powi(2)).sum::<f64>() / count;
            let reach = 1.96 * (variance / count).sqrt();
            curve.points.push((*step, mean));
            curve.interval.push((*step, mean - reach, mean + reach));
        }
        curve
    }
}

/// A chart of the curves; with `unit_axis`, the value axis is 0 to 1.
pub(super) fn svg(curves: &[Curve], unit_axis: bool) -> Result<String> {
    let failed = |error: String| Error::failure("cannot draw a chart").cause(error);
    let steps = curves.iter().flat_map(|curve| &curve.points).map(|(step, _)| *step);
    let last = steps.fold(1.0, f64::max);
    let (low, high) = if unit_axis { (0.0, 1.0) } else { range(curves) };
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (380, 220)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(26)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..last, low..high)
            .map_err(|error| failed(error.to_string()))?;
        chart
            .configure_mesh()
            .light_line_style(RGBColor(255, 255, 255))
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|value| label(*value))
            .draw()
            .map_err(|error| failed(error.to_string()))?;
        for curve in curves {
            let color = COLORS[curve.color % COLORS.len()];
            let clamp = |value: f64| value.clamp(low, high);
            let above = curve.interval.iter().map(|(step, _, high)| (*step, clamp(*high)));
            let below = curve.interval.iter().rev().map(|(step, low, _)| (*step, clamp(*low)));
            let outline: Vec<(f64, f64)> = above.chain(below).collect();
            let line: Vec<(f64, f64)> =
                curve.points.iter().map(|(step, value)| (*step, clamp(*value))).collect();
            let style = ShapeStyle { color: color.to_rgba(), filled: false, stroke_width: 2 };
            let mut result = chart.draw_series([Polygon::new(outline, color.mix(0.18).filled())]).map(drop);
            if result.is_ok() {
                result = match curve.dashed {
                    true => chart.draw_series(DashedLineSeries::new(line, 6, 4, style)).map(drop),
                    false => chart.draw_series(LineSeries::new(line, style)).map(drop),
                };
            }
            result.map_err(|error| failed(error.to_string()))?;
        }
        area.present().map_err(|error| failed(error.to_string()))?;
    }
    Ok(text)
}

/// The range of the values, including 0, with a margin above.
fn range(curves: &[Curve]) -> (f64, f64) {
    let values = || curves.iter().flat_map(|curve| &curve.points).map(|(_, value)| *value);
    let (low, high) = (values().fold(f64::MAX, f64::min).min(0.0), values().fold(f64::MIN, f64::max));
    (low, if high > low { high + 0.05 * (high - low) } else { low + 1.0 })
}

fn label(value: f64) -> String {
    if value == 0.0 || (0.01..1000.0).contains(&value.abs()) {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        format!("{value:.0e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothed_is_running_mean_with_standard_error() {
        let values: Vec<(f64, f64)> =
            [0.0, 1.0, 0.0, 1.0, 0.0, 1.0].into_iter().zip(1..).map(|(v, s)| (f64::from(s), v)).collect();
        let curve = Curve::smoothed(0, &values);
        // The last five are 1, 0, 1, 0, 1: mean 3/5, variance 6/25, standard error sqrt(6/125).
        let (step, mean) = curve.points[5];
        let (same, low, high) = curve.interval[5];
        let reach = 1.96 * (6.0f64 / 125.0).sqrt();
        for (got, expected) in
            [(step, 6.0), (same, 6.0), (mean, 0.6), (low, 0.6 - reach), (high, 0.6 + reach)]
        {
            assert!((got - expected).abs() < 1e-12, "{got} {expected}"); // f64
        }
        assert_eq!(curve.interval[0], (1.0, 0.0, 0.0));
    }

    #[test]
    fn dashed_curve_differs_from_a_solid_one() {
        let chart = |dashed| {
            let points = vec![(1.0, 0.2), (9.0, 0.8)];
            svg(&[Curve { dashed, points, ..Curve::default() }], true).unwrap()
        };
        let lines = |dashed| chart(dashed).matches("stroke=\"#0072B2\"").count();
        assert_eq!(lines(false), 1);
        assert!(lines(true) > 10, "{}", chart(true));
    }

    #[test]
    fn axis_labels_are_short() {
        assert_eq!([0.0, 0.25, 12.0, 6e-4, 12345.0].map(label), ["0", "0.25", "12", "6e-4", "1e4"]);
    }
}
