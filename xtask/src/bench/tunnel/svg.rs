//! The speed of one TCP stream as a bar chart.

use std::fmt::Write;

use super::contestants::Kind;
use super::figures::Measure;
use super::report::Report;

/// Sizes in pixels.
const WIDTH: f64 = 720.0;
const NAMES: f64 = 170.0;
const VALUES: f64 = 90.0;
const HEAD: f64 = 78.0;
const BAR: f64 = 24.0;
const STEP: f64 = 34.0;

/// Draws the chart, the fastest first.
pub(super) fn chart(report: &Report) -> String {
    let speed = |kind: Kind| report.figures.median(kind, Measure::TcpOne);
    let mut bars: Vec<_> = report
        .entrants
        .iter()
        .filter_map(|entrant| Some((entrant, speed(entrant.kind)?)))
        .collect();
    bars.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let most = bars
        .iter()
        .map(|(_, speed)| *speed)
        .fold(f64::MIN_POSITIVE, f64::max);
    let height = HEAD + STEP * bars.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    line(
        &mut svg,
        (10.0, 24.0),
        "font-size=\"17\" font-weight=\"bold\"",
        "One TCP stream, Gbit/s",
    );
    for (text, y) in report.circumstances().iter().zip([44.0, 62.0]) {
        line(&mut svg, (10.0, y), "font-size=\"12\" fill=\"#555555\"", text);
    }
    for (index, (entrant, speed)) in bars.iter().enumerate() {
        let y = HEAD + STEP * index as f64;
        let width = speed / most * (WIDTH - NAMES - VALUES);
        let fill = match entrant.kind {
            kind if kind.is_aerie() => "#1668a8",
            Kind::Veth => "#cccccc",
            _ => "#8a97a3",
        };
        let middle = y + BAR * 0.7;
        let name = entrant.kind.name();
        line(&mut svg, (NAMES - 10.0, middle), "text-anchor=\"end\"", name);
        let _ = writeln!(
            svg,
            "<rect x=\"{NAMES}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{fill}\"/>"
        );
        line(
            &mut svg,
            (NAMES + width + 8.0, middle),
            "",
            &format!("{speed:.2}"),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn line(svg: &mut String, (x, y): (f64, f64), attributes: &str, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>",
        escape(text)
    );
}

/// Text as it may stand in an element or an attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no way to write other control characters.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tunnel::report;

    #[test]
    fn what_means_something_in_xml_is_escaped() {
        assert_eq!(escape("a<b> & \"c'\u{7}"), "a&lt;b&gt; &amp; &quot;c&#39; ");
        assert_eq!(escape("µs"), "µs");
    }

    #[test]
    fn a_chart_has_a_bar_for_each_contestant_the_fastest_first() {
        let svg = chart(&report::tests::sample());
        assert!(svg.contains("2 x Fast &amp; &lt;Cheap&gt;"), "{svg}");
        assert!(svg.contains("AES-256-GCM"), "{svg}");
        let place = |text: &str| svg.find(text).unwrap();
        assert!(place(">aerie<") < place(">wireguard-go<"), "{svg}");
        assert_eq!(svg.matches(" fill=\"#1668a8\"").count(), 1);
        assert!(
            svg.contains("width=\"460.0\"") && svg.contains(">11.00<"),
            "{svg}"
        );
    }
}
