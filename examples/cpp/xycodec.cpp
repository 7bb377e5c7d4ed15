// WAV to .xyc and back by the graphs of `xycodec export-onnx`, on ONNX Runtime's C API alone.
//
//   xycodec encode FOLDER IN.wav OUT.xyc        WAV of 16 bits at the model's input rate; channels are averaged
//   xycodec decode FOLDER IN.xyc OUT.wav
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

using Bytes = std::vector<uint8_t>;
using Samples = std::vector<float>;
using Codes = std::vector<std::vector<int64_t>>;  // layers of frames

[[noreturn]] void fail(const std::string& why) { throw std::runtime_error(why); }

// ---- files ------------------------------------------------------------------------------------

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path + " cannot be read: check the path");
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) fail(path + " cannot be written: check the path and the disk");
}

uint32_t little(const Bytes& bytes, size_t place, int size) {
  if (place + size > bytes.size()) fail("the file is cut off");
  uint32_t value = 0;
  for (int i = 0; i < size; i++) value |= static_cast<uint32_t>(bytes[place + i]) << (8 * i);
  return value;
}

void put(Bytes& bytes, uint32_t value, int size) {
  for (int i = 0; i < size; i++) bytes.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

void put(Bytes& bytes, const std::string& text) { bytes.insert(bytes.end(), text.begin(), text.end()); }

bool has(const Bytes& bytes, size_t place, const char* text) {
  return place + std::strlen(text) <= bytes.size() && !std::memcmp(&bytes[place], text, std::strlen(text));
}

Samples read_wav(const std::string& path, int64_t rate) {
  const Bytes bytes = read_file(path);
  if (!has(bytes, 0, "RIFF") || !has(bytes, 8, "WAVE")) fail(path + " is no WAV file");
  uint32_t channels = 0;
  for (size_t place = 12; place + 8 <= bytes.size();) {
    const size_t size = little(bytes, place + 4, 4), start = place + 8;
    if (has(bytes, place, "fmt ")) {
      channels = little(bytes, start + 2, 2);
      if (little(bytes, start, 2) != 1 || little(bytes, start + 14, 2) != 16 || little(bytes, start + 4, 4) != rate || !channels)
        fail(path + " must be PCM of 16 bits at " + std::to_string(rate) + " Hz: convert it first");
    } else if (has(bytes, place, "data")) {
      if (!channels) fail(path + " has no format before its samples");
      Samples samples(std::min(size, bytes.size() - start) / (2 * channels));
      for (size_t i = 0; i < samples.size(); i++) {
        float sum = 0;
        for (uint32_t c = 0; c < channels; c++) sum += static_cast<int16_t>(little(bytes, start + 2 * (i * channels + c), 2));
        samples[i] = sum / (32768.0f * channels);
      }
      return samples;
    }
    place = start + size + size % 2;
  }
  fail(path + " holds no samples");
}

void write_wav(const std::string& path, const Samples& samples, uint32_t rate) {
  Bytes bytes;
  const uint32_t size = static_cast<uint32_t>(2 * samples.size());
  put(bytes, "RIFF"), put(bytes, 36 + size, 4), put(bytes, "WAVEfmt "), put(bytes, 16, 4), put(bytes, 1, 2), put(bytes, 1, 2);
  put(bytes, rate, 4), put(bytes, 2 * rate, 4), put(bytes, 2, 2), put(bytes, 16, 2), put(bytes, "data"), put(bytes, size, 4);
  for (float value : samples) {
    const float scaled = std::nearbyint(value * 32768.0f);
    put(bytes, static_cast<uint16_t>(static_cast<int16_t>(std::clamp(scaled, -32768.0f, 32767.0f))), 2);
  }
  write_file(path, bytes);
}

// ---- JSON: flat objects of numbers and strings --------------------------------------------------

std::string value_of(const std::string& json, const std::string& key) {
  size_t place = json.find("\"" + key + "\"");
  if (place == std::string::npos || (place = json.find(':', place)) == std::string::npos) fail("no " + key + " in: " + json);
  place = json.find_first_not_of(" \t\n", place + 1);
  if (place == std::string::npos) fail("no value of " + key);
  if (json[place] == '"') return json.substr(place + 1, json.find('"', place + 1) - place - 1);
  return json.substr(place, json.find_first_of(",} \n", place) - place);
}

int64_t number_of(const std::string& json, const std::string& key) { return std::stoll(value_of(json, key)); }

// ---- ONNX Runtime -------------------------------------------------------------------------------

const OrtApi* ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);

void check(OrtStatus* status) {
  if (!status) return;
  const std::string why = ort->GetErrorMessage(status);
  ort->ReleaseStatus(status);
  fail("ONNX Runtime: " + why);
}

class Graph {
 public:
  Graph(OrtEnv* env, const std::string& path) {
    OrtSessionOptions* options;
    check(ort->CreateSessionOptions(&options));
    OrtStatus* status = ort->CreateSession(env, path.c_str(), options, &session_);
    ort->ReleaseSessionOptions(options);
    check(status);
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
  }
  Graph(const Graph&) = delete;
  ~Graph() {
    ort->ReleaseSession(session_);
    ort->ReleaseMemoryInfo(memory_);
  }

  // The facts that the graph holds: a JSON object.
  std::string about() const {
    OrtModelMetadata* metadata;
    OrtAllocator* allocator;
    char* text;
    check(ort->SessionGetModelMetadata(session_, &metadata));
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->ModelMetadataLookupCustomMetadataMap(metadata, allocator, "xycodec", &text));
    ort->ReleaseModelMetadata(metadata);
    if (!text) fail("the graph was not made by xycodec export-onnx");
    const std::string found = text;
    check(ort->AllocatorFree(allocator, text));
    return found;
  }

  // Runs the graph on one tensor, and returns the result's values.
  template <typename Out, typename In>
  std::vector<Out> run(const char* input, std::vector<In>& values, std::vector<int64_t> shape, const char* output,
                       ONNXTensorElementDataType type) const {
    OrtValue *given = nullptr, *made = nullptr;
    check(ort->CreateTensorWithDataAsOrtValue(memory_, values.data(), values.size() * sizeof(In), shape.data(), shape.size(),
                                              type, &given));
    const OrtValue* inputs[] = {given};
    OrtStatus* status = ort->Run(session_, nullptr, &input, inputs, 1, &output, 1, &made);
    ort->ReleaseValue(given);
    check(status);
    OrtTensorTypeAndShapeInfo* info;
    size_t count;
    Out* data;
    check(ort->GetTensorTypeAndShape(made, &info));
    check(ort->GetTensorShapeElementCount(info, &count));
    check(ort->GetTensorMutableData(made, reinterpret_cast<void**>(&data)));
    std::vector<Out> result(data, data + count);
    ort->ReleaseTensorTypeAndShapeInfo(info);
    ort->ReleaseValue(made);
    return result;
  }

 private:
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

// ---- windows: neighbours share a third, each keeps its middle, decoded ones fade over a frame ------

struct Window {
  int64_t start, end, first, stop;  // in items; kept frames of its result
};

std::vector<Window> windows(int64_t total, int64_t size, int64_t unit) {
  const int64_t overlap = std::lrint(size / 3.0), step = size - overlap, left = overlap / 2;
  std::vector<Window> found;
  for (int64_t start = 0; total > 0; start += step * unit) {
    const bool last = total - start <= size * unit;
    const int64_t end = std::min(start + size * unit, total);
    found.push_back({start, end, start ? left : 0, last ? (end - start + unit - 1) / unit : left + step});
    if (last) break;
  }
  return found;
}

Codes encode(const Graph& graph, const std::string& about, const Samples& samples) {
  Codes codes(number_of(about, "n_q"));
  for (const Window& w : windows(static_cast<int64_t>(samples.size()), number_of(about, "window_frames"), number_of(about, "hop_length"))) {
    Samples part(samples.begin() + w.start, samples.begin() + w.end);
    const auto made = graph.run<int64_t>("audio", part, {1, w.end - w.start}, "codes", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    const size_t frames = made.size() / codes.size();
    for (size_t q = 0; q < codes.size(); q++)
      codes[q].insert(codes[q].end(), made.begin() + q * frames + w.first, made.begin() + q * frames + w.stop);
  }
  return codes;
}

Samples decode(const Graph& graph, const std::string& about, const Codes& codes, int64_t num_samples) {
  const int64_t in = number_of(about, "input_sample_rate"), out = number_of(about, "output_sample_rate");
  const int64_t hop = number_of(about, "hop_length") * out / in, size = number_of(about, "window_frames");
  const bool fades = std::lrint(size / 3.0) > 0;
  Samples audio, beyond;
  for (const Window& w : windows(static_cast<int64_t>(codes[0].size()), size, 1)) {
    std::vector<int64_t> part;
    for (const auto& layer : codes) part.insert(part.end(), layer.begin() + w.start, layer.begin() + w.end);
    const auto layers = static_cast<int64_t>(codes.size());
    const auto made = graph.run<float>("codes", part, {1, layers, w.end - w.start}, "audio", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    Samples block(made.begin() + w.first * hop, made.begin() + w.stop * hop);
    for (size_t i = 0; i < beyond.size(); i++) block[i] = beyond[i] + (i + 0.5f) / hop * (block[i] - beyond[i]);
    audio.insert(audio.end(), block.begin(), block.end());
    const int64_t end = std::min<int64_t>((w.stop + fades) * hop, static_cast<int64_t>(made.size()));
    beyond.assign(made.begin() + w.stop * hop, made.begin() + end);
  }
  audio.resize((num_samples * out + in - 1) / in);
  return audio;
}

// ---- .xyc: magic, header, codes frame by frame, checksum --------------------------------------------

uint32_t crc32(const uint8_t* data, size_t size) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; i++) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
  }
  return ~crc;
}

int bits_of(int64_t codebook_size) { return static_cast<int>(std::ceil(std::log2(static_cast<double>(codebook_size)))); }

Bytes pack(const Codes& codes, const std::string& about, size_t num_samples) {
  const int bits = bits_of(number_of(about, "codebook_size"));
  const std::string header =
      "{\"codebook_size\":" + value_of(about, "codebook_size") + ",\"frames\":" + std::to_string(codes[0].size()) +
      ",\"hop_length\":" + value_of(about, "hop_length") + ",\"model\":\"" + value_of(about, "model_id") + "\",\"n_q\":" +
      std::to_string(codes.size()) + ",\"num_samples\":" + std::to_string(num_samples) + ",\"output_sample_rate\":" +
      value_of(about, "output_sample_rate") + ",\"sample_rate\":" + value_of(about, "input_sample_rate") + "}";
  Bytes bytes;
  put(bytes, "XYC1"), put(bytes, static_cast<uint32_t>(header.size()), 4), put(bytes, header);
  size_t place = 8 * bytes.size();
  bytes.resize(bytes.size() + (codes.size() * codes[0].size() * bits + 7) / 8);
  for (size_t t = 0; t < codes[0].size(); t++)
    for (const auto& layer : codes)
      for (int bit = bits - 1; bit >= 0; bit--, place++) bytes[place / 8] |= ((layer[t] >> bit) & 1) << (7 - place % 8);
  put(bytes, crc32(bytes.data(), bytes.size()), 4);
  return bytes;
}

Codes unpack(const Bytes& bytes, const std::string& about, int64_t& num_samples) {
  if (!has(bytes, 0, "XYC1") || bytes.size() < 12) fail("not a .xyc file: it does not begin with XYC1");
  if (little(bytes, bytes.size() - 4, 4) != crc32(bytes.data(), bytes.size() - 4)) fail("the .xyc file is damaged: get a whole copy");
  const size_t body = 8 + little(bytes, 4, 4);
  if (body + 4 > bytes.size()) fail("the .xyc file is cut off");
  const std::string header(bytes.begin() + 8, bytes.begin() + body);
  if (value_of(header, "model") != value_of(about, "model_id")) fail("the codes are from model " + value_of(header, "model"));
  const int64_t layers = number_of(header, "n_q"), frames = number_of(header, "frames"), size = number_of(header, "codebook_size");
  const int bits = bits_of(size);
  num_samples = number_of(header, "num_samples");
  const int64_t hop = number_of(header, "hop_length"), room = 8 * static_cast<int64_t>(bytes.size() - 4 - body);
  if (layers < 1 || layers > number_of(about, "n_q") || size != number_of(about, "codebook_size") || num_samples < 0 ||
      hop != number_of(about, "hop_length") || frames != (num_samples + hop - 1) / hop || frames > room || frames * layers * bits > room)
    fail("the .xyc file does not fit the model");
  Codes codes(layers, std::vector<int64_t>(frames));
  size_t place = 8 * body;
  for (int64_t t = 0; t < frames; t++)
    for (auto& layer : codes) {
      for (int bit = 0; bit < bits; bit++, place++) layer[t] = layer[t] << 1 | (bytes[place / 8] >> (7 - place % 8) & 1);
      if (layer[t] >= size) fail("the .xyc file holds a code that is out of range");
    }
  return codes;
}

int main(int count, char** words) try {
  const std::string way = count == 5 ? words[1] : "";
  if (way != "encode" && way != "decode") fail("usage: xycodec encode|decode FOLDER IN OUT");
  OrtEnv* env;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "xycodec", &env));
  const Graph graph(env, std::string(words[2]) + "/" + way + "r.onnx");
  const std::string about = graph.about();
  if (way == "encode") {
    const Samples samples = read_wav(words[3], number_of(about, "input_sample_rate"));
    write_file(words[4], pack(encode(graph, about, samples), about, samples.size()));
  } else {
    int64_t num_samples = 0;
    const Codes codes = unpack(read_file(words[3]), about, num_samples);
    write_wav(words[4], decode(graph, about, codes, num_samples), static_cast<uint32_t>(number_of(about, "output_sample_rate")));
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << "\n";
  return 1;
}
