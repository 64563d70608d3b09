//! Puts the page together: a frame, a style, scripts, and the data between them.

use serde_json::Value;

const FRAME: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
/// In the order in which they build on each other.
const SCRIPTS: [&str; 6] = [
    include_str!("page/basics.js"),
    include_str!("page/chart.js"),
    include_str!("page/curves.js"),
    include_str!("page/maps.js"),
    include_str!("page/texts.js"),
    include_str!("page/tables.js"),
];

/// The whole page.
pub(super) fn page(data: &Value) -> String {
    // In the order of the frame. The data comes last: nothing in it is taken for a mark of the frame.
    FRAME.replacen("/* style */", STYLE, 1).replacen("/* scripts */", &SCRIPTS.join("\n"), 1).replacen(
        "/* data */",
        &embedded(data),
        1,
    )
}

/// JSON that stands in a script element: without `<`, nothing in it can end the element or open another.
fn embedded(data: &Value) -> String {
    data.to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_text_can_leave_the_data() {
        let data = json!({"text": "</script><script>alert(1)</script><!--", "name": "/* scripts */"});
        let page = page(&data);
        assert_eq!(page.matches("alert(1)").count(), 1);
        assert!(page.contains(r"\u003c/script>\u003cscript>alert(1)\u003c/script>\u003c!--"));
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(page.contains(r#""name":"/* scripts */""#));
        assert_eq!(serde_json::from_str::<Value>(&embedded(&data)).unwrap(), data);
    }

    #[test]
    fn the_page_loads_nothing() {
        let page = page(&json!({}));
        for mark in ["http:", "https:", "@import", "url(", " src=", "fetch(", "innerHTML", "insertAdjacentHTML"] {
            let found = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!found.contains(mark), "{mark}");
        }
        assert!(page.contains("default-src 'none'"));
    }
}
